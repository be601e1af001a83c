/** The drawing board: a layer for each control, drawn on with a pointer or with the keyboard. */

import { Layer } from "./layer.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const COARSE = 0.025; // of the longer side, for one press of an arrow

export class Sketch {
  /** `changed()` is called after every change; `said(text)` with what a screen reader should say. */
  constructor({ canvas, cursor, changed, said }) {
    Object.assign(this, { canvas, cursor, changed, said });
    this.view = canvas.getContext("2d");
    this.tool = "pen";
    this.penSize = 3;
    this.inverted = false;
    this.point = null;
    this.penDown = false;
    this.layers = [this.#newLayer()];
    this.active = 0;
    this.#listenToPointer();
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#lift());
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && this.#moveTo(this.#centre()));
    this.render();
  }

  get layer() {
    return this.layers[this.active];
  }

  get colours() {
    return this.inverted ? { pen: "#000", eraser: "#fff" } : { pen: "#fff", eraser: "#000" };
  }

  /** The width of a line, in pixels of the image. */
  get lineWidth() {
    return Math.max(1.5, (this.penSize / 200) * Math.max(this.canvas.width, this.canvas.height));
  }

  #newLayer() {
    return new Layer(this.canvas.width, this.canvas.height, this.colours.eraser);
  }

  /** Have as many layers as a bundle has controls. */
  count(layers) {
    while (this.layers.length < layers) this.layers.push(this.#newLayer());
    this.layers.length = layers;
    this.select(Math.min(this.active, layers - 1));
  }

  select(index) {
    this.#lift();
    this.active = index;
    this.render();
  }

  resize(width, height) {
    if (width === this.canvas.width && height === this.canvas.height) return;
    this.#lift();
    Object.assign(this.canvas, { width, height });
    this.canvas.style.setProperty("--ratio", width / height);
    for (const layer of this.layers) layer.resize(width, height);
    this.point = null;
    this.render();
  }

  show(photo) {
    this.layer.show(photo);
    this.render();
  }

  undo() {
    this.#lift();
    this.said(this.layer.undo() ? "Taken back" : "Nothing to take back");
    this.render();
  }

  clear() {
    this.#lift();
    this.layer.clear(this.colours.eraser);
    this.said("Cleared");
    this.render();
  }

  invert(inverted) {
    this.inverted = inverted;
    for (const layer of this.layers) if (!layer.photo) layer.invert();
    this.render();
  }

  setCanny(on) {
    this.layer.canny = on;
    this.render();
  }

  keepEdges() {
    this.layer.keepEdges();
    this.render();
  }

  render() {
    const { layer, view } = this;
    view.drawImage(layer.shown(), 0, 0);
    this.#showCursor();
    this.changed();
  }

  #centre() {
    return this.point ?? { x: this.canvas.width / 2, y: this.canvas.height / 2 };
  }

  #stroke(to) {
    const { layer } = this;
    if (layer.canny) return;
    layer.line(this.point ?? to, to, this.lineWidth, this.colours[this.tool]);
    this.view.drawImage(layer.canvas, 0, 0);
  }

  #listenToPointer() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.layer.canny) return;
      canvas.setPointerCapture(event.pointerId);
      this.#lift();
      this.layer.remember();
      this.drawing = true;
      this.point = this.#position(event);
      this.#stroke(this.point);
      this.changed();
    });
    canvas.addEventListener("pointermove", (event) => {
      const [...all] = this.drawing ? event.getCoalescedEvents?.() ?? [] : [];
      for (const each of all.length ? all : [event]) {
        const to = this.#position(each);
        if (this.drawing) this.#stroke(to);
        this.point = to;
      }
      this.#showCursor(true);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.#lift());
    canvas.addEventListener("pointerleave", () => this.#showCursor());
  }

  #position(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  #lift() {
    const drew = this.drawing || this.penDown;
    this.drawing = this.penDown = false;
    this.#showCursor();
    if (drew) this.changed();
  }

  #key(event) {
    if (event.altKey || ((event.ctrlKey || event.metaKey) && event.key !== "z")) return;
    const act = this.#action(event);
    if (!act) return;
    event.preventDefault();
    act();
  }

  #action({ key, ctrlKey, metaKey, shiftKey }) {
    if (key in ARROWS) return () => this.#step(ARROWS[key], shiftKey);
    if (key === " ") return () => this.#togglePen();
    if (key === "z" && (ctrlKey || metaKey)) return () => this.undo();
    if (key === "Delete" || key === "Backspace") return () => this.clear();
    const tool = { p: "pen", e: "eraser" }[key.toLowerCase()];
    return tool && (() => this.choose(tool));
  }

  choose(tool) {
    this.tool = tool;
    this.said(tool === "pen" ? "Pen" : "Eraser");
    this.changed();
  }

  #step([right, down], fine) {
    const { width, height } = this.canvas;
    const length = fine ? 1 : Math.max(1, Math.round(COARSE * Math.max(width, height)));
    const from = this.#centre();
    const within = (value, end) => Math.min(Math.max(value, 0), end);
    const to = { x: within(from.x + right * length, width), y: within(from.y + down * length, height) };
    this.point = from;
    if (this.penDown) this.#stroke(to);
    this.#moveTo(to);
    this.said(`${Math.round(to.x)}, ${Math.round(to.y)}`);
  }

  #togglePen() {
    if (this.layer.canny) return this.said("Switch the edges off, or choose to draw on them");
    if (this.penDown) {
      this.#lift();
      this.#showCursor(true);
      return this.said("Pen lifted");
    }
    this.layer.remember();
    this.point = this.#centre();
    this.penDown = true;
    this.#stroke(this.point);
    this.changed();
    this.#showCursor(true);
    this.said(`${this.tool === "pen" ? "Pen" : "Eraser"} down`);
  }

  #moveTo(point) {
    this.point = point;
    this.#showCursor(true);
  }

  /** Show a ring of the pen's size, where the pointer or the keyboard's cursor is. */
  #showCursor(shown = this.canvas.matches(":focus-visible")) {
    const { canvas, cursor, point } = this;
    cursor.hidden = !shown || !point || this.layer?.canny;
    if (cursor.hidden) return;
    const shrink = canvas.clientWidth / canvas.width;
    const size = Math.max(6, this.lineWidth * shrink);
    cursor.classList.toggle("down", this.penDown);
    Object.assign(cursor.style, {
      width: `${size}px`,
      height: `${size}px`,
      left: `${canvas.offsetLeft + point.x * shrink}px`,
      top: `${canvas.offsetTop + point.y * shrink}px`,
    });
  }
}
