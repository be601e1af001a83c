/** The section of the control image: the drawing board, its tools, and the ways in which an image gets there. */

import { ApiError } from "./api.js";
import { $, numberOf, setNumber, sizeOf } from "./fields.js";
import { Sketch } from "./sketch.js";

const MULTIPLE = 16; // sizes that every family takes
const LARGEST = 4096; // of a side of the canvas: a size that is typed in halfway is not tried

export class Board {
  /** `changed()` is called when what would be sent has changed. */
  constructor(changed) {
    this.sketch = new Sketch({
      canvas: $("sketch"),
      cursor: $("cursor"),
      changed: () => this.sketch && this.#show(),
      said: (text) => ($("sketch-state").textContent = text),
    });
    this.changed = changed;
    this.scales = [1];
    this.area = 512 * 512;
    this.#listenToTools();
    this.#listenToImages();
    this.#show();
  }

  /** Suit a bundle: its size and its number of controls, given as a number or as a list of them. */
  suit({ size, controls = 1 }) {
    const [width, height] = sizeOf(size);
    const count = Math.max(1, Array.isArray(controls) ? controls.length : controls);
    this.area = width * height;
    this.#rememberScale();
    this.scales = Array.from({ length: count }, (_, index) => this.scales[index] ?? 1);
    this.sketch.count(count);
    this.#listLayers(count);
    this.resize();
    setNumber("scale", this.scales[this.sketch.active]);
  }

  /** Follow the width and height of the form. */
  resize() {
    const sizes = [numberOf("width"), numberOf("height")];
    if (sizes.every((size) => Number.isInteger(size) && size >= 8 && size <= LARGEST)) this.sketch.resize(...sizes);
  }

  /** The fields of a request; the images themselves only where they are asked for. */
  fields({ images = true } = {}) {
    this.#rememberScale();
    const list = (values) => (values.length > 1 ? values : values[0]);
    const fields = { control_scale: list(this.scales) };
    if (!this.drawn) return fields;
    if (images) fields.control_image = list(this.canvases().map((canvas) => canvas.toDataURL("image/png")));
    if (this.#edgesAreTheServers) fields.preprocess = "canny";
    return fields;
  }

  /** Throw where nothing is drawn that would have an effect, in the words of the page. */
  check() {
    this.#rememberScale();
    if (this.drawn || this.scales.every((scale) => scale === 0)) return;
    throw new ApiError("Draw a control image, or open one; with a control scale of 0 none is needed.", {
      param: "control_image",
    });
  }

  /** The control images to send. A server makes edges of all of them or of none, so that those of one of
   * several are sent as they are shown. */
  canvases() {
    return this.sketch.layers.map((layer) => (this.#edgesAreTheServers ? layer.canvas : layer.shown()));
  }

  get #edgesAreTheServers() {
    return this.sketch.layers.every((layer) => layer.canny);
  }

  /** Whether there is a control to send. */
  get drawn() {
    return this.sketch.layers.some((layer) => layer.touched);
  }

  /** The control images as the model sees them, as data URLs. */
  pictures() {
    return this.drawn ? this.sketch.layers.map((layer) => layer.shown().toDataURL("image/png")) : [];
  }

  #rememberScale() {
    this.scales[this.sketch.active] = numberOf("scale");
  }

  #listLayers(count) {
    $("layers").hidden = count < 2;
    const choices = this.scales.map((_, index) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "layer", value: index });
      input.checked = index === this.sketch.active;
      input.addEventListener("change", () => this.#select(index));
      label.append(input, String(index + 1));
      return label;
    });
    $("layers").replaceChildren(...(count < 2 ? [] : choices));
  }

  #select(index) {
    this.#rememberScale();
    this.sketch.select(index);
    setNumber("scale", this.scales[index]);
  }

  #listenToTools() {
    const { sketch } = this;
    for (const tool of document.getElementsByName("tool")) {
      tool.addEventListener("change", () => sketch.choose(tool.value));
    }
    $("pen-size").addEventListener("input", () => (sketch.penSize = Number($("pen-size").value)));
    $("undo").addEventListener("click", () => sketch.undo());
    $("clear").addEventListener("click", () => sketch.clear());
    $("inverted").addEventListener("change", () => sketch.invert($("inverted").checked));
    $("canny").addEventListener("change", () => sketch.setCanny($("canny").checked));
    $("keep-edges").addEventListener("click", () => {
      sketch.keepEdges();
      $("sketch").focus();
    });
  }

  #listenToImages() {
    $("open").addEventListener("click", () => $("open-file").click());
    $("open-file").addEventListener("change", () => {
      this.#take($("open-file").files);
      $("open-file").value = ""; // so that the same file can be opened again
    });
    document.addEventListener("paste", (event) => {
      const text = event.clipboardData.types.includes("text/plain") && event.target.matches("input, textarea");
      if (!text) this.#take(event.clipboardData.files);
    });
    this.#listenToDrops($("stage"));
  }

  /** A file that is dropped beside the board must not replace the page; fields for files take their own. */
  #listenToDrops(stage) {
    const isField = (event) => event.target.matches?.("input[type=file]");
    addEventListener("dragover", (event) => {
      if (isField(event)) return;
      event.preventDefault();
      stage.classList.toggle("over", stage.contains(event.target));
    });
    addEventListener("dragleave", () => stage.classList.remove("over"));
    addEventListener("drop", (event) => {
      if (isField(event)) return;
      event.preventDefault();
      stage.classList.remove("over");
      if (stage.contains(event.target)) this.#take(event.dataTransfer.files);
    });
  }

  async #take(files) {
    if (!files.length || document.body.dataset.task !== "image") return;
    const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
    try {
      await this.#open(file);
      $("sketch-state").textContent = `Opened ${file.name}`;
    } catch {
      this.failed?.(new Error(`${file.name} is not an image that the browser can read; give a PNG, JPEG or WebP file.`));
    }
  }

  async #open(file) {
    const photo = await createImageBitmap(file);
    const scale = Math.sqrt(this.area / (photo.width * photo.height));
    const fitted = (side) => Math.max(MULTIPLE, Math.round((side * scale) / MULTIPLE) * MULTIPLE);
    if (this.sketch.layers.length === 1) {
      setNumber("width", fitted(photo.width));
      setNumber("height", fitted(photo.height));
      this.resize();
    }
    this.sketch.show(photo);
  }

  #show() {
    const { layer, tool } = this.sketch;
    document.querySelector(`[name=tool][value=${tool}]`).checked = true;
    $("empty").hidden = layer.touched;
    $("edges").hidden = !layer.photo;
    $("canny").checked = layer.canny;
    $("keep-edges").hidden = !layer.canny;
    $("stage").classList.toggle("locked", layer.canny);
    this.changed?.();
  }
}
