// Score over cost: the best so far as a step line, single images as dots. The same form as in reports.

import { drawn, element, number, score } from "./dom.js";

const LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 40, HEIGHT = 240;

/** Round numbers from low to high, 1, 2 or 5 times a power of ten apart. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.75);
  const first = Math.ceil(low / size - 1e-9), last = Math.floor(high / size + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * size).toPrecision(12)));
}

export class Chart {
  /** @param series objects with a label, a colour, dots [nfe, score] and the best so far as points [nfe, score]. */
  constructor(series) {
    this.series = series;
    this.place = element("div");
    this.table = element("tbody");
    const legend = element("ul", { class: "legend" }, ...series.map((one) => {
      const item = element("li", {}, one.label);
      item.style.setProperty("--c", one.colour);
      return item;
    }));
    this.root = element(
      "section", { class: "panel chart-panel", "aria-label": "Score over cost" },
      element("h3", {}, "Best score over cost"), legend, this.place,
      element(
        "details", {}, element("summary", {}, "As a table"),
        element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Best score over cost" }, element(
          "table", {}, element("thead", {}, element("tr", {}, ...["Strategy", "NFE", "Best score"].map((name) => element("th", { scope: "col" }, name)))), this.table,
        )),
      ),
    );
    new ResizeObserver(() => this.draw()).observe(this.place);
  }

  draw() {
    const width = Math.max(this.place.clientWidth, 220);
    const points = this.series.flatMap((one) => [...one.dots, ...one.line]);
    const right = Math.max(...points.map(([x]) => x), 1);
    let low = Math.min(...points.map(([, y]) => y)), high = Math.max(...points.map(([, y]) => y));
    if (!points.length) [low, high] = [0, 1];
    if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
    [low, high] = [low - 0.06 * (high - low), high + 0.06 * (high - low)];
    const px = (x) => LEFT + ((width - LEFT - RIGHT) * x) / right;
    const base = HEIGHT - BOTTOM;
    const py = (y) => TOP + (base - TOP) * (1 - (y - low) / (high - low));
    const said = this.series.map((one) => `${one.label}: ${one.line.length ? score(one.line.at(-1)[1]) : "nothing yet"}`);
    const svg = drawn("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `Best score so far, ${said.join("; ")}` });
    for (const y of ticks(low, high, 4)) {
      svg.append(drawn("path", { class: "grid", d: `M${LEFT} ${py(y)}H${width - RIGHT}` }));
      svg.append(drawn("text", { x: LEFT - 7, y: py(y) + 3.5, "text-anchor": "end" }, String(y)));
    }
    svg.append(drawn("path", { class: "axis", d: `M${LEFT} ${base}H${width - RIGHT}` }));
    for (const x of ticks(0, right, width / 90)) {
      svg.append(drawn("path", { class: "axis", d: `M${px(x)} ${base}v4` }));
      svg.append(drawn("text", { x: px(x), y: base + 16, "text-anchor": "middle" }, number(x)));
    }
    svg.append(drawn("text", { class: "label", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "NFE"));
    for (const one of this.series) {
      const group = drawn("g");
      group.style.setProperty("--c", one.colour);
      for (const [x, y] of one.dots) group.append(drawn("circle", { class: "dot", cx: px(x), cy: py(y), r: 3 }));
      if (one.line.length) {
        const [[x, y], ...rest] = one.line;
        const end = Math.max(...one.dots.map(([at]) => at), x);
        const path = rest.map(([a, b]) => `H${px(a)}V${py(b)}`).join("");
        group.append(drawn("path", { class: "line", d: `M${px(x)} ${py(y)}${path}H${px(end)}` }));
      }
      svg.append(group);
    }
    this.place.replaceChildren(svg);
    this.table.replaceChildren(...this.series.flatMap((one) => one.line.map(([x, y]) => element(
      "tr", {}, element("th", { scope: "row" }, one.label), element("td", {}, number(x)), element("td", {}, score(y)),
    ))));
  }
}
