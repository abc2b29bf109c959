// An uploaded image and the mask that is drawn over it, with a pointer or the keyboard.

import { byId } from "./dom.js";

const MOST = 512;

export class Brush {
  constructor() {
    this.picture = byId("picture");
    this.canvas = byId("strokes");
    this.size = byId("brush-size");
    this.eraser = byId("eraser");
    this.marked = byId("marked");
    this.file = null;
    this.aspect = null;
    this.strokes = [];
    this.cursor = null;
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => this.release());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    for (const change of ["focus", "blur"]) this.canvas.addEventListener(change, () => this.draw());
    byId("undo").addEventListener("click", () => this.change(() => this.strokes.pop()));
    byId("clear").addEventListener("click", () => this.change(() => (this.strokes = [])));
  }

  /** Take an image file; null = none. */
  async load(file) {
    this.file = null;
    this.strokes = [];
    if (file === null) return this.draw();
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, MOST / Math.max(bitmap.width, bitmap.height));
    for (const canvas of [this.picture, this.canvas]) {
      canvas.width = Math.max(1, Math.round(bitmap.width * scale * this.zoom(bitmap)));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale * this.zoom(bitmap)));
    }
    const context = this.picture.getContext("2d");
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(bitmap, 0, 0, this.picture.width, this.picture.height);
    this.file = file;
    this.cursor = [this.canvas.width / 2, this.canvas.height / 2];
    this.say();
    this.draw();
  }

  /** A whole factor that makes small images large enough to draw on. */
  zoom(bitmap) {
    return Math.max(1, Math.floor(MOST / Math.max(bitmap.width, bitmap.height)));
  }

  /** The size of the model's images, width by height: what is cut off is shaded. */
  fit(width, height) {
    this.aspect = width / height;
    this.draw();
  }

  get empty() {
    return !this.pixels().some((value, at) => at % 4 === 3 && value > 127);
  }

  /** The mask as a PNG, white where the image is resampled. */
  async mask() {
    const canvas = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    const context = canvas.getContext("2d");
    context.drawImage(this.layer(), 0, 0);
    context.globalCompositeOperation = "destination-over";
    context.fillRect(0, 0, canvas.width, canvas.height);
    return canvas.convertToBlob({ type: "image/png" });
  }

  get radius() {
    return (this.size.valueAsNumber / 200) * Math.max(this.canvas.width, this.canvas.height);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.canvas.width) / box.width, ((event.clientY - box.top) * this.canvas.height) / box.height];
  }

  press(event) {
    if (!this.file || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.at(event), this.eraser.checked);
    this.drawing = true;
  }

  drag(event) {
    if (!this.file) return;
    this.cursor = this.at(event);
    if (this.drawing) this.strokes.at(-1).points.push(this.cursor);
    this.draw();
  }

  release() {
    if (this.drawing) this.say();
    this.drawing = false;
  }

  begin(point, erase) {
    this.cursor = point;
    this.strokes.push({ erase, radius: this.radius, points: [point] });
    this.draw();
  }

  key(event) {
    const step = Math.max(this.canvas.width, this.canvas.height) / 32;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!this.file || !(way || event.key === " " || event.key === "Backspace")) return;
    event.preventDefault();
    if (way) {
      const [x, y] = this.cursor;
      this.cursor = [Math.min(Math.max(x + way[0], 0), this.canvas.width), Math.min(Math.max(y + way[1], 0), this.canvas.height)];
      this.draw();
    } else {
      this.begin(this.cursor, event.key === "Backspace");
    }
    this.say();
  }

  change(how) {
    how();
    this.draw();
    this.say();
  }

  /** The strokes alone, white. */
  layer() {
    const canvas = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    const context = canvas.getContext("2d");
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
    for (const { erase, radius, points } of this.strokes) {
      context.globalCompositeOperation = erase ? "destination-out" : "source-over";
      context.lineWidth = 2 * radius;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
    return canvas;
  }

  pixels() {
    return this.layer().getContext("2d").getImageData(0, 0, this.canvas.width, this.canvas.height).data;
  }

  draw() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.file) return;
    context.globalAlpha = 0.6;
    context.drawImage(this.layer(), 0, 0);
    context.globalAlpha = 1;
    this.shade(context);
    if (document.activeElement === this.canvas || this.drawing) {
      for (const [colour, line] of [["#000", 4], ["#ffe14d", 2]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: line });
        context.beginPath();
        context.arc(...this.cursor, this.radius, 0, 2 * Math.PI);
        context.stroke();
      }
    }
  }

  /** Darken what is outside the centred part of the model's aspect ratio. */
  shade(context) {
    if (this.aspect === null) return;
    const { width, height } = this.canvas;
    const across = Math.min(width, height * this.aspect), down = across / this.aspect;
    const [x, y] = [(width - across) / 2, (height - down) / 2];
    context.fillStyle = "#000a";
    for (const box of [[0, 0, width, y], [0, y + down, width, y], [0, y, x, down], [x + across, y, x, down]]) context.fillRect(...box);
  }

  say() {
    const pixels = this.pixels();
    let count = 0;
    for (let at = 3; at < pixels.length; at += 4) count += pixels[at] > 127;
    const place = document.activeElement === this.canvas
      ? `Brush at ${Math.round((100 * this.cursor[0]) / this.canvas.width)} % from the left, ${Math.round((100 * this.cursor[1]) / this.canvas.height)} % from the top. `
      : "";
    this.marked.textContent = `${place}${Math.round((400 * count) / pixels.length)} % of the image is marked.`;
  }
}
