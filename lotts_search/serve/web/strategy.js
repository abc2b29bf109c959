// The choice of a strategy with its settings, as the server describes them.

import { element } from "./dom.js";

/** The usual colours of strategies, by their places in the reports' palette. */
export const USUAL = ["bestofn", "lotts", "adaptivelotts", "treesearch", "particle", "svdd", "zeroorder", "moresteps"];

/** Return a colour for each of these strategies, two of the same name included. */
export function colours(names) {
  const taken = new Set();
  return names.map((name) => {
    let place = USUAL.indexOf(name.toLowerCase().replace(/[^a-z]/g, ""));
    if (place < 0 || taken.has(place)) place = USUAL.findIndex((_, free) => !taken.has(free) && free > 1);
    taken.add(place);
    return `var(--series-${place + 1})`;
  });
}

export class StrategyChoice {
  /**
   * @param {string} legend names the choice.
   * @param {string} id distinguishes its fields.
   * @param cards of all strategies.
   * @param {string} chosen is the first choice.
   */
  constructor(legend, id, cards, chosen) {
    Object.assign(this, { id, cards });
    this.select = element("select", { id: `${id}-name`, "aria-describedby": `${id}-about` });
    this.about = element("p", { id: `${id}-about`, class: "hint" });
    this.settings = element("details", { class: "settings" });
    this.root = element(
      "fieldset", { class: "strategy" }, element("legend", {}, element("label", { for: `${id}-name` }, legend)),
      this.select, this.about, this.settings,
    );
    this.select.addEventListener("change", () => this.describe());
    this.offer(() => true, chosen);
  }

  get card() {
    return this.cards.find((card) => card.id === this.select.value);
  }

  /** Offer the strategies that are of use, and keep the chosen one if it is among them. */
  offer(useful, chosen = this.select.value) {
    const offered = this.cards.filter(useful);
    this.select.replaceChildren(...offered.map((card) => element("option", { value: card.id }, card.id)));
    this.select.value = offered.some((card) => card.id === chosen) ? chosen : offered[0]?.id;
    if (this.described !== this.select.value) this.describe();
  }

  describe() {
    const card = this.card;
    this.described = card?.id;
    this.about.textContent = card ? card.summary : "";
    this.fields = (card?.settings ?? []).map((setting) => new Setting(setting, this.id));
    const regional = new Set(sharedByLocal(this.cards));
    const [own, common] = [this.fields.filter((f) => !regional.has(f.name)), this.fields.filter((f) => regional.has(f.name))];
    const region = element("details", {}, element("summary", {}, `Region and refinement (${common.length})`), ...common.map((f) => f.root));
    this.settings.replaceChildren(
      element("summary", {}, `Settings of ${card?.id} (${this.fields.length})`), ...own.map((f) => f.root), common.length ? region : "",
    );
    this.settings.hidden = this.fields.length === 0;
  }

  /** The settings that were changed; undefined where none was. */
  get changed() {
    const changed = this.fields.filter((field) => field.input.value !== "").map((field) => [field.name, field.value]);
    return changed.length ? Object.fromEntries(changed) : undefined;
  }
}

/** Names of the settings that all strategies with a located region have in common. */
function sharedByLocal(cards) {
  const names = cards.map((card) => card.settings.map((setting) => setting.name)).filter((list) => list.includes("spatial"));
  return (names[0] ?? []).filter((name) => names.every((list) => list.includes(name)));
}

/** The field of one setting; empty = the default. */
class Setting {
  constructor({ name, type, default: usual, doc }, prefix) {
    this.name = name;
    this.type = type.replace(/ or none$/, "");
    const id = `${prefix}-${name}`, about = `${id}-about`;
    const words = this.type.split(" or ");
    const plain = words.filter((word) => /^[\w-]+$/.test(word));
    const shown = usual === "None" ? "automatic" : usual;
    let offered = null;
    if (this.type === "true or false" || (plain.length === words.length && words.length > 1)) {
      this.input = element(
        "select", { id, "aria-describedby": about },
        ...["", ...words].map((word) => element("option", { value: word }, word === "" ? `default: ${shown}` : word)),
      );
    } else {
      const step = this.type === "an integer" ? "1" : this.type === "a number" ? "any" : null;
      if (words.length > 1) offered = element("datalist", { id: `${id}-list` }, ...plain.map((word) => element("option", { value: word })));
      this.input = element("input", {
        id, type: step ? "number" : "text", step, placeholder: shown, list: offered ? `${id}-list` : null, "aria-describedby": about,
      });
    }
    this.root = element("div", { class: "field" }, element("label", { for: id }, name), this.input, offered, element("p", { id: about, class: "hint" }, doc));
  }

  get value() {
    const text = this.input.value;
    if (this.type === "true or false") return text === "true";
    if (this.input.type === "number") return Number(text);
    if (text.startsWith("{")) {
      try {
        return JSON.parse(text);
      } catch {
        return text;  // the server says what is wrong with it
      }
    }
    return text;
  }
}
