// The page: reads the form, runs one search or two, and shows them.

import { list } from "./api.js";
import { Brush } from "./brush.js";
import { Chart } from "./chart.js";
import { byId, element, number } from "./dom.js";
import { example, known } from "./examples.js";
import { Run } from "./run.js";
import { colours, StrategyChoice } from "./strategy.js";
import { look } from "./tree.js";

const form = byId("ask");
const brush = new Brush();
let models = [];
let choices = [];
let runs = [];

const mode = () => form.elements.mode.value;
const drawn = () => form.elements.region.value === "drawn";
const model = () => models.find((card) => card.id === byId("model").value);
const compared = () => byId("compare").checked;

async function start() {
  let strategies;
  try {
    [models, strategies] = await Promise.all([list("v1/models"), list("v1/strategies")]);
  } catch (error) {
    complain(`The server's lists cannot be read: ${error.message}`);
    return;
  }
  byId("model").replaceChildren(...models.map((card) => element("option", { value: card.id }, card.id)));
  choices = [
    new StrategyChoice("Strategy", "first", strategies, models[0].strategy),
    new StrategyChoice("Second strategy", "second", strategies, "best-of-n"),
  ];
  byId("strategies").append(...choices.map((choice) => choice.root));
  form.addEventListener("change", arrange);
  byId("amount").addEventListener("input", arrange);
  byId("file").addEventListener("change", take);
  byId("example").addEventListener("click", () => (byId("prompt").value = example()));
  form.addEventListener("submit", submit);
  byId("stop").addEventListener("click", () => runs.forEach((run) => run.stop()));
  byId("look").addEventListener("click", (event) => event.target === byId("look") && byId("look").close());
  arrange();
  document.body.classList.add("ready");
}

/** Show what goes with the choices that were made. */
function arrange() {
  const card = model(), refine = mode() === "refine";
  byId("refine").hidden = !refine;
  byId("drawing").hidden = !brush.file;
  for (const id of ["brush", "draw-hint", "marked", "brush-help"]) byId(id).hidden = !drawn();
  byId("strokes").hidden = !drawn();
  byId("model-about").textContent = `${card.size} pixels, ${card.steps} steps, ${number(card.nfe_per_image)} NFE an image`;
  if (byId("verifier").dataset.model !== card.id) {
    byId("verifier").replaceChildren(...card.verifiers.map((name) => element("option", { value: name }, name)));
    byId("verifier").dataset.model = card.id;
  }
  byId("steps").placeholder = card.steps;
  byId("guidance").placeholder = card.guidance;
  byId("example").hidden = !known(card.id);
  const [width, height] = card.size.split("x").map(Number);
  brush.fit(width, height);
  for (const choice of choices) choice.offer((one) => (!refine || one.takes_image) && (!one.rewrites || card.rewrites));
  choices[1].root.hidden = !compared();
  choices[0].root.querySelector("label").textContent = compared() ? "First strategy" : "Strategy";
  const amount = byId("amount").valueAsNumber;
  byId("budget-about").textContent = byId("unit").value === "images" && amount > 0
    ? `as many NFE as ${number(amount)} images from pure noise: ${number(amount * card.nfe_per_image)}`
    : byId("unit").value === "nfe" ? "calls of the network, one per denoising step" : "";
  if (compared()) byId("budget-about").textContent += byId("budget-about").textContent ? ", for each strategy" : "for each strategy";
}

async function take() {
  const file = byId("file").files[0] ?? null;
  complain("");
  try {
    await brush.load(file);
  } catch {
    complain(`${file.name} cannot be read as an image.`, "file");
  }
  arrange();
}

/** Return what the form asks for, without the strategy; undefined with a complaint where something is wrong. */
async function asked() {
  complain("");
  const text = (id) => byId(id).value.trim() || undefined;
  const figure = (id) => (byId(id).value === "" ? undefined : byId(id).valueAsNumber);
  if (!text("prompt")) return complain("Type a prompt first.", "prompt");
  for (const field of form.elements) {
    if (field.closest("[hidden]") === null && !field.checkValidity()) {
      for (let box = field.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
      return complain(`${field.labels?.[0]?.textContent ?? field.id}: ${field.validationMessage}`, field.id);
    }
  }
  let files = null;
  if (mode() === "refine") {
    if (!brush.file) return complain("Choose an image to refine.", "file");
    if (drawn() && brush.empty) return complain("Draw over the region that should change.", "strokes");
    files = drawn() ? { image: brush.file, mask_image: await brush.mask() } : { image: brush.file };
  }
  const fields = {
    prompt: text("prompt"), model: model().id, verifier: text("verifier"), [byId("unit").value]: byId("amount").valueAsNumber,
    seed: figure("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1, target: figure("target"),
    num_inference_steps: figure("steps"), guidance_scale: figure("guidance"), negative_prompt: text("negative"),
  };
  return { fields, files };
}

async function submit(event) {
  event.preventDefault();
  const wanted = await asked();
  if (!wanted || runs.some((run) => !run.over)) return;
  const chosen = choices.slice(0, compared() ? 2 : 1).map((choice) => ({ strategy: choice.card.id, settings: choice.changed }));
  const same = chosen.length === 2 && chosen[0].strategy === chosen[1].strategy;
  const names = chosen.map(({ strategy }, at) => (same ? `${strategy} ${at + 1}` : strategy));
  const shades = colours(chosen.map(({ strategy }) => strategy));
  const dialog = byId("look");
  runs = chosen.map((choice, at) => new Run(
    names[at], shades[at], { fields: { ...wanted.fields, ...choice }, files: wanted.files }, (candidate) => look(dialog, candidate), redraw, say,
  ));
  const chart = new Chart(runs.map((run) => run.series));
  redraw.chart = chart;
  byId("empty").hidden = true;
  byId("searches").className = runs.length === 2 ? "two" : "";
  byId("searches").replaceChildren(...runs.map((run) => run.hero), chart.root, ...runs.map((run) => run.forest));
  busy(true);
  say("Searching.", true);
  if (matchMedia("(max-width: 999px)").matches) byId("results").scrollIntoView();
  await Promise.all(runs.map((run) => run.run()));
  busy(false);
  const failed = runs.find((run) => run.error);
  if (failed) complain(failed.error.message, fieldOf(failed.error.param));
}

/** Return the id of the field that a parameter of the API comes from. */
function fieldOf(param) {
  const names = { nfe: "amount", images: "amount", seconds: "amount", budget: "amount", image: "file", mask_image: "strokes", settings: "first-name" };
  return names[param] ?? form.elements[param]?.id;
}

/** Let one of the two buttons work, and move the focus with it. */
function busy(is) {
  const [off, on] = is ? [byId("go"), byId("stop")] : [byId("stop"), byId("go")];
  const focused = document.activeElement === off;
  on.disabled = false;
  if (focused) on.focus();
  off.disabled = true;
}

/** Say what is wrong, and mark the field at fault. */
function complain(text, id) {
  byId("error").textContent = text;
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
  const field = id ? byId(id) : null;
  if (!text || !field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "error");
  field.focus();
}

/** Draw the chart once a frame, however many events came. */
function redraw() {
  if (redraw.due) return;
  redraw.due = true;
  requestAnimationFrame(() => {
    redraw.due = false;
    redraw.chart.draw();
  });
}

/** Tell a screen reader; unimportant news at most every three seconds. */
function say(text, important) {
  const now = performance.now();
  if (!important && now - (say.last ?? -Infinity) < 3000) return;
  say.last = now;
  byId("live").textContent = text;
}

start();
