// Elements and texts. Everything from the server becomes a text node or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element with attributes and children; children that are no nodes become texts, null ones are left out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Write a score as the reports do. */
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

/** Write a change of a score with its sign. */
export const gain = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

/** Write a number with at most one decimal. */
export const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });

/** Show an image pixel by pixel where it is smaller than its place. */
export function sharp(image) {
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 128));
  return image;
}
