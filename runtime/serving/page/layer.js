/** One control image: what is drawn, the image it was drawn upon, and how to take strokes back. */

import { cannyEdges } from "./edges.js";

const UNDO_BYTES = 96 * 2 ** 20;

export class Layer {
  constructor(width, height, ground) {
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.#size(width, height);
    this.empty(ground);
  }

  get width() {
    return this.canvas.width;
  }

  get height() {
    return this.canvas.height;
  }

  /** Start anew, with nothing to take back. `ground` is a colour. */
  empty(ground) {
    Object.assign(this, { photo: null, canny: false, touched: false, stroked: false, past: [] });
    this.#fill(ground);
  }

  #size(width, height) {
    Object.assign(this.canvas, { width, height });
  }

  #fill(colour) {
    this.context.fillStyle = colour;
    this.context.fillRect(0, 0, this.width, this.height);
  }

  /** Show an image on the whole canvas, on black where it is transparent. */
  show(photo) {
    this.remember();
    this.#fill("#000");
    Object.assign(this, { photo, canny: false, touched: true, stroked: false });
    this.#paint(photo);
  }

  #paint(source) {
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(source, 0, 0, this.width, this.height);
  }

  /** Scale to another size; an image without strokes on it is scaled from its original. */
  resize(width, height) {
    if (width === this.width && height === this.height) return;
    const source = this.photo && !this.stroked ? this.photo : copyOf(this.canvas);
    this.#size(width, height);
    this.#fill("#000");
    this.#paint(source);
    this.past = [];
  }

  /** Remember the present pixels, to which `undo` returns. */
  remember() {
    const { canny, photo, touched, stroked } = this;
    const pixels = this.context.getImageData(0, 0, this.width, this.height);
    this.past.push({ pixels, canny, photo, touched, stroked });
    while (this.past.length > 1 && this.past.length * pixels.data.length > UNDO_BYTES) this.past.shift();
  }

  /** Return whether there was anything to take back. */
  undo() {
    const before = this.past.pop();
    if (!before) return false;
    const { pixels, ...state } = before;
    this.context.putImageData(pixels, 0, 0);
    Object.assign(this, state);
    return true;
  }

  /** Draw a line, or a dot where both points are the same. */
  line(from, to, width, colour) {
    const context = this.context;
    Object.assign(context, { lineWidth: width, strokeStyle: colour, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
    this.touched = this.stroked = true;
  }

  /** Remove everything, in a way that can be taken back. */
  clear(ground) {
    this.remember();
    const { past } = this;
    this.empty(ground);
    this.past = past;
  }

  /** Exchange black and white, in what can be taken back too. */
  invert() {
    const swap = (pixels) => {
      const words = new Uint32Array(pixels.data.buffer);
      for (let i = 0; i < words.length; i++) words[i] ^= 0x00ffffff;
      return pixels;
    };
    this.context.putImageData(swap(this.context.getImageData(0, 0, this.width, this.height)), 0, 0);
    for (const { pixels } of this.past) swap(pixels);
  }

  /** Return the edges as ImageData. */
  edges() {
    return cannyEdges(this.context.getImageData(0, 0, this.width, this.height));
  }

  /** The image that is shown: the pixels, or their edges where these were asked for. */
  shown() {
    if (!this.canny) return this.canvas;
    const copy = copyOf(this.canvas);
    copy.getContext("2d").putImageData(this.edges(), 0, 0);
    return copy;
  }

  /** Replace the image by its edges, to draw on them. */
  keepEdges() {
    const edges = this.edges();
    this.remember();
    this.context.putImageData(edges, 0, 0);
    Object.assign(this, { canny: false, photo: null });
  }
}

function copyOf(canvas) {
  const copy = document.createElement("canvas");
  Object.assign(copy, { width: canvas.width, height: canvas.height });
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}
