// The tree of a search: a card for each candidate, its located regions beside it, what was made from it after them.

import { element, gain, number, score, sharp } from "./dom.js";
import { outlined } from "./mask.js";

const KINDS = {
  sample: "first image", encode: "given image", refine: "refinement", advance: "unfinished image", compose: "composition",
};
const STEPS = ["advance", "compose"];
const DEEP = 4;

/** One candidate: what the server told of it, and its elements. */
class Candidate {
  constructor(trial, kind, parent) {
    Object.assign(this, { trial, kind, parent, depth: parent ? parent.depth + 1 : 0 });
    Object.assign(this, { status: "started", score: null, image: null, nfe: 0, regions: [], best: false, told: null });
    this.picture = sharp(element("img", { alt: "", hidden: true }));
    this.blank = element("span", { class: "blank" });
    this.numbers = element("span", { class: "score", "aria-hidden": "true" });
    this.card = element("button", { type: "button", class: "candidate", tabindex: -1 }, this.picture, this.blank, this.numbers);
    this.line = element("div", { class: "line" }, this.card);
    this.children = element("ul", { class: "children" });
    this.node = element("li", { class: "node" }, this.line, this.children);
  }

  /** The gain of an image over the image that it was made from; unfinished ones have none. */
  get gained() {
    const before = this.parent?.told?.score ?? null, now = this.told?.score ?? null;
    return before === null || now === null ? null : now - before;
  }

  /** What it is, in words. */
  get words() {
    const parts = [KINDS[this.kind] ?? this.kind];
    if (this.status === "started") parts.push("under way");
    else if (this.status !== "done") parts.push(this.status);
    else if (this.score !== null) parts.push(`score ${score(this.score)}`);
    if (this.gained !== null) parts.push(`${gain(this.gained)} over the image before`);
    if (this.best) parts.push("best so far");
    return parts.join(", ");
  }

  show() {
    this.picture.hidden = this.image === null;
    this.blank.hidden = this.image !== null;
    if (this.image !== null && this.picture.src !== this.image) this.picture.src = this.image;
    this.picture.alt = this.words;
    if (this.image === null) this.card.setAttribute("aria-label", this.words);
    else this.card.removeAttribute("aria-label");
    this.blank.textContent = this.status === "started" ? "…" : this.status === "done" ? `step ${this.told?.stop}` : this.status;
    this.card.classList.toggle("waiting", this.status === "started");
    this.card.classList.toggle("winner", this.best);
    this.card.classList.toggle("partial", STEPS.includes(this.kind) && (this.told?.score ?? null) === null);
    const more = this.best ? "★ best" : this.gained === null ? "" : gain(this.gained);
    const class_ = this.best ? "badge" : this.gained > 0 ? "up" : "down";
    this.numbers.replaceChildren(element("b", {}, score(this.score)), element("span", { class: class_ }, more));
  }
}

export class Tree {
  /** @param {(candidate: Candidate) => void} look shows a candidate at large. */
  constructor(label, look) {
    this.candidates = new Map();
    this.root = element("ul", { class: "tree", "aria-label": label });
    this.best = null;
    this.look = look;
    this.root.addEventListener("keydown", (event) => this.move(event));
  }

  started({ trial, kind, parent }) {
    if (kind in KINDS) this.place(trial, kind, parent).show();
  }

  finished(told) {
    if (told.kind in KINDS) {
      const found = this.place(told.trial, told.kind, told.parent);
      Object.assign(found, { status: told.status, score: told.score, image: told.image, nfe: told.nfe, told });
      found.show();
    } else if (told.kind === "score") {
      const found = this.candidates.get(told.parent);
      if (!found) return;
      found.nfe += told.nfe;
      if (found.score === null) Object.assign(found, { score: told.score, image: told.image ?? found.image });
      found.show();
    }
  }

  async located(told) {
    const on = this.candidates.get(told.parent);
    if (!on) return;
    const share = `${Math.round(100 * told.ratio)} %`;
    const heat = element("img", { class: "pixels", src: told.heat, alt: "heat map of what looks wrong" });
    const found = element("div", { class: "found" }, sharp(element("img", { src: on.image ?? told.heat, alt: `located region, ${share} of the image` })));
    on.regions.push(told);
    on.line.append(
      element("figure", {}, heat, element("figcaption", {}, "heat map")),
      element("figure", {}, found, element("figcaption", {}, `${share} located`)),
    );
    this.arrange(on);
    found.append(await outlined(told.mask));
  }

  newBest({ trial }) {
    const before = this.best;
    this.best = this.candidates.get(trial) ?? null;
    for (const one of [before, this.best]) {
      if (one) {
        one.best = one === this.best;
        one.show();
      }
    }
  }

  /** Mark what never finished, once the search is over. */
  end() {
    for (const one of this.candidates.values()) {
      if (one.status === "started") {
        one.status = "stopped";
        one.show();
      }
    }
  }

  place(trial, kind, parent) {
    let found = this.candidates.get(trial);
    if (found) return found;
    const before = this.candidates.get(parent) ?? null;
    found = new Candidate(trial, kind, before);
    found.card.addEventListener("click", () => this.look(found));
    found.card.addEventListener("focus", () => this.reach(found.card));
    if (this.candidates.size === 0) found.card.tabIndex = 0;
    this.candidates.set(trial, found);
    (before?.children ?? this.root).append(found.node);
    if (before) this.arrange(before);
    return found;
  }

  /** A candidate with regions or children has a row of its own; only children continue the row of their parent. */
  arrange(candidate) {
    candidate.node.classList.add("inner");
    candidate.node.classList.toggle("deep", candidate.depth >= DEEP);
    for (const one of [candidate, candidate.parent]) {
      if (!one) continue;
      const children = [...one.children.children];
      one.node.classList.toggle("chain", children.length === 1);
      one.node.classList.toggle("branches", children.length > 1 && children.some((child) => child.classList.contains("inner")));
    }
  }

  /** Only one card is reached by Tab; arrow keys go to the others. */
  reach(card) {
    for (const one of this.candidates.values()) one.card.tabIndex = one.card === card ? 0 : -1;
  }

  move(event) {
    const cards = [...this.root.querySelectorAll(".candidate")];
    const at = cards.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: cards.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    cards[Math.min(Math.max(to, 0), cards.length - 1)].focus();
  }
}

/** Fill a dialog with a candidate at large and what is known of it. */
export function look(dialog, candidate) {
  const told = candidate.told ?? {};
  const facts = [
    ["Score", score(candidate.score)],
    ["Gain", candidate.gained === null ? null : gain(candidate.gained)],
    ["NFE", number(candidate.nfe)],
    ["Steps", told.stop === null || told.stop === undefined ? null : `${told.start ?? 0} to ${told.stop}`],
    ["Resampled", told.mask_ratio === null || told.mask_ratio === undefined ? null : `${Math.round(100 * told.mask_ratio)} %`],
    ["Prompts", told.prompts?.length ? told.prompts.join(" · ") : null],
    ["Message", told.message || null],
  ].filter(([, value]) => value !== null);
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const words = candidate.words;
  dialog.replaceChildren(
    element("h2", { id: "look-title" }, words[0].toUpperCase() + words.slice(1)),
    candidate.image === null ? null : sharp(element("img", { src: candidate.image, alt: words })),
    element("dl", { class: "facts" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    close,
  );
  dialog.showModal();
}
