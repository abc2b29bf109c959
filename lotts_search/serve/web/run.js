// One search on the page: its best image, its numbers, its tree, what can be taken away.

import { Refused, search } from "./api.js";
import { element, number, score, sharp } from "./dom.js";
import { Tree } from "./tree.js";

const ENDED = {
  done: "Done", target: "The target is reached", seconds: "The time is over", deadline: "Stopped by the server's deadline: the best image until then",
};

export class Run {
  /**
   * @param {string} name of the strategy.
   * @param {string} colour of its line.
   * @param {{fields: object, files: object | null}} asked what is sent.
   * @param {(candidate) => void} look shows a candidate at large.
   * @param {() => void} changed is called when there is something new to draw.
   * @param {(text: string, important: boolean) => void} say tells people who do not see the page.
   */
  constructor(name, colour, asked, look, changed, say) {
    Object.assign(this, { name, asked, changed, say });
    this.stopping = new AbortController();
    this.line = [];
    this.dots = [];
    this.nfe = 0;
    this.images = 0;
    this.series = { label: name, colour, dots: this.dots, line: this.line };
    this.image = sharp(element("img", { class: "best", alt: "", hidden: true }));
    this.blank = element("div", { class: "best blank" }, "waiting for the first image");
    this.status = element("p", { class: "status" }, "Waiting for the server");
    this.progress = element("progress", { max: 1, value: 0, "aria-label": `Share of the budget spent by ${name}` });
    this.facts = element("dl", { class: "facts" });
    this.taken = element("div", { class: "taken" });
    this.tree = new Tree(`Tree of the search by ${name}`, look);
    const title = () => [dot(colour), name];
    this.hero = element(
      "section", { class: "panel hero", "aria-label": `Best image of ${name}` }, element("h3", {}, ...title()),
      element("div", { class: "show" }, element("div", { class: "frame" }, this.image, this.blank), element("div", { class: "words" }, this.status, this.progress, this.facts, this.taken)),
    );
    this.forest = element("section", { class: "panel", "aria-label": `Tree of ${name}` }, element("h3", {}, ...title(), element("small", {}, "tree of the search")), this.tree.root);
    this.show();
  }

  /** Run until it ends, however it does; never throws. */
  async run() {
    const began = performance.now();
    const clock = setInterval(() => this.tick((performance.now() - began) / 1000), 200);
    try {
      for await (const event of search(this.asked.fields, this.asked.files, this.stopping.signal)) this.hear(event);
      if (!this.completed) throw new Refused(null, "nothing more");
    } catch (error) {
      this.fail(error);
    } finally {
      clearInterval(clock);
      this.tick((performance.now() - began) / 1000);
      this.over = true;
      this.tree.end();
      this.hero.classList.remove("running");
      this.changed();
    }
  }

  stop() {
    this.stopping.abort();
  }

  hear(event) {
    switch (event.type) {
      case "search.started":
        this.limits = event.budget;
        this.hero.classList.add("running");
        this.state("Searching");
        break;
      case "search.trial_started":
        this.tree.started(event);
        break;
      case "search.preview":
        if (!this.line.length) this.picture(event.image, `first image, unfinished, step ${event.step} of ${event.steps}`);
        break;
      case "search.trial_finished":
        this.finished(event);
        break;
      case "search.mask_found":
        this.tree.located(event);
        break;
      case "search.new_best":
        this.best(event);
        break;
      default:
        if (event.type.endsWith(".completed")) this.complete(event);
    }
    this.changed();
  }

  finished(event) {
    this.tree.finished(event);
    this.nfe = event.nfe_cum;
    if (this.limits.seconds === null) this.progress.value = Math.min(1, event.spent);
    if (event.score !== null && event.kind !== "score") {
      this.dots.push([event.nfe_cum, event.score]);
      this.images += event.kind !== "encode";
    }
    this.show();
  }

  best(event) {
    this.tree.newBest(event);
    this.line.push([this.nfe, event.score]);
    const image = this.tree.best?.image;
    if (image) this.picture(image, `best image so far, score ${score(event.score)}`);
    this.say(`${this.name}: best score so far ${score(event.score)}, ${Math.round(100 * this.progress.value)} % of the budget spent.`, false);
    this.show();
  }

  complete(event) {
    this.completed = event;
    this.progress.value = 1;
    const url = `data:image/${event.output_format};base64,${event.b64_json}`;
    this.picture(url, `best image, score ${score(event.score)}`);
    this.state(ENDED[event.status] ?? event.status);
    this.say(`${this.name}: ${ENDED[event.status] ?? event.status}. Best score ${score(event.score)}.`, true);
    this.nfe = event.usage.nfe;
    this.images = event.usage.images;
    this.show();
    this.taken.replaceChildren(...recipe(event, url, this.asked.files), ...event.notes.map((note) => element("p", { class: "hint" }, `Note: ${note}`)));
  }

  fail(error) {
    const stopped = this.stopping.signal.aborted;
    const lost = error instanceof TypeError ? "the connection to the server was lost" : error.message;
    this.state(stopped ? "Stopped" : `Failed: ${lost}`);
    this.error = stopped ? null : error;
    this.hero.classList.toggle("failed", !stopped);
    this.say(`${this.name}: ${this.status.textContent}`, true);
    const image = this.tree.best?.image;
    if (image) this.taken.replaceChildren(link("Download the preview", image, `${this.name}-preview.webp`));
    else this.blank.textContent = "no image";
  }

  state(text) {
    this.status.textContent = text;
  }

  picture(url, alt) {
    Object.assign(this.image, { src: url, alt, hidden: false });
    this.blank.hidden = true;
  }

  tick(seconds) {
    this.seconds = seconds;
    if (this.limits?.seconds && !this.completed) this.progress.value = Math.min(1, seconds / this.limits.seconds);
    this.show();
  }

  show() {
    const found = [
      ["Score", score(this.line.at(-1)?.[1])],
      ["NFE", number(this.nfe)],
      ["Images", String(this.images)],
      ["Time", `${number(this.seconds ?? 0)} s`],
    ];
    if (this.completed) found.push(["Seed", String(this.completed.seed)]);
    const text = JSON.stringify(found);
    if (text === this.shown) return;
    this.shown = text;
    this.facts.replaceChildren(...found.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }
}

/** A swatch of a strategy's colour. */
export function dot(colour) {
  const found = element("span", { class: "swatch", "aria-hidden": "true" });
  found.style.setProperty("--c", colour);
  return found;
}

function link(text, url, name) {
  return element("a", { class: "button", href: url, download: name }, text);
}

/** The image and the command that repeats the search, with the files that the command names. */
function recipe(event, url, files) {
  const command = element("pre", { tabindex: 0, role: "group", "aria-label": "The command that makes this image" }, event.recipe);
  const copy = element("button", { type: "button" }, "Copy the command");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(event.recipe);
      copy.textContent = "Copied";
    } catch {  // only pages of this machine or behind TLS may write there
      getSelection().selectAllChildren(command);
      copy.textContent = "Selected: press Ctrl+C";
    }
  });
  const save = (data) => URL.createObjectURL(data);
  const name = `lotts-${event.seed}`;
  return [
    element(
      "p", { class: "buttons" },
      link("Download the image", url, `${name}.${event.output_format}`),
      link("Download the recipe", save(new Blob([`${event.recipe}\n`], { type: "text/plain" })), `${name}.sh`),
      files?.mask_image ? link("Download the mask", save(files.mask_image), "mask.png") : null,
      copy,
    ),
    command,
    ...(files ? [element("p", { class: "hint" }, `The command reads your image as image.png${files.mask_image ? ", and the mask as mask.png" : ""}.`)] : []),
  ];
}
