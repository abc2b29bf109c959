// A mask as SVG paths in units of its cells: the outline and the area of what is resampled.

import { drawn } from "./dom.js";

/** Return an SVG drawing of the mask in an image whose URL this is. */
export async function outlined(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x)] > 127;
  let area = "", edge = "";
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (inside(x, y)) area += `M${x} ${y}h1v1h-1z`;
      if (inside(x, y) !== inside(x, y - 1)) edge += `M${x} ${y}h1`;
      if (inside(x, y) !== inside(x - 1, y)) edge += `M${x} ${y}v1`;
    }
  }
  return drawn(
    "svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn("path", { class: "shade", d: area }), drawn("path", { class: "edge-back", d: edge }), drawn("path", { class: "edge", d: edge }),
  );
}
