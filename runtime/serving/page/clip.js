/** A clip: a job on the server, followed until it is done. */

import { ApiError } from "./api.js";
import { $, commonFields, defined, numberOf } from "./fields.js";
import * as output from "./output.js";

const FIRST_PAUSE = 200; // milliseconds until the first question, and at most between two
const LONGEST_PAUSE = 2000;

export class Clips {
  constructor(api) {
    this.api = api;
    for (const id of ["reference", "frames"]) $(id).addEventListener("change", () => showPreviews());
  }

  #fields() {
    const own = { control_scale: numberOf("clip-scale"), num_frames: numberOf("num-frames"), fps: numberOf("fps") };
    return defined({ ...commonFields(), ...own });
  }

  /** The call of the form, for `codeOf`. */
  call() {
    const names = (id) => chosen(id).map((file) => file.name);
    return {
      route: "videos",
      fields: this.#fields(),
      files: { input_reference: names("reference"), control_clip: names("frames") },
    };
  }

  async make(signal, say) {
    check();
    const form = new FormData();
    for (const [name, value] of Object.entries(this.#fields())) form.append(name, value);
    for (const file of chosen("reference")) form.append("input_reference", file);
    for (const file of chosen("frames")) form.append("control_clip", file);
    const job = await this.api.createClip(form, signal);
    try {
      return await this.#follow(job, signal, say);
    } catch (error) {
      if (error.name === "AbortError") await this.api.deleteClip(job.id);
      throw error;
    }
  }

  async #follow(job, signal, say) {
    const began = performance.now();
    let wait = FIRST_PAUSE;
    while (job.status === "queued" || job.status === "in_progress") {
      say(job.status === "queued" ? "Waiting" : "Denoising");
      output.progress((job.progress ?? 0) / 100);
      await pause(wait, signal);
      wait = Math.min(1.5 * wait, LONGEST_PAUSE);
      job = await this.api.clip(job.id, signal);
    }
    if (job.status !== "completed") throw new Error(job.error?.message ?? `The clip ended as ${job.status}.`);
    const blob = await this.api.clipContent(job.id, signal);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const facts = [job.size, `seed ${job.seed}`, `${seconds} s`].join(" · ");
    output.finishClip(blob, { name: job.id, facts });
    this.last = job.id;
    return `Done in ${seconds} s`;
  }

  /** Delete the last clip from the server, and from the page. */
  async remove() {
    await this.api.deleteClip(this.last);
    output.empty("video");
  }
}

/** Throw where a file is not chosen, in the words of the page. */
function check() {
  for (const [id, param, what] of [
    ["reference", "input_reference", "the image that the clip shows moving"],
    ["frames", "control_clip", "the control: a video, or its images"],
  ]) {
    if (!$(id).files.length) throw new ApiError(`Choose ${what}.`, { param });
  }
}

/** The files of a field, in the order of their names: 2.png before 10.png. */
function chosen(id) {
  const inOrder = new Intl.Collator("en", { numeric: true });
  return [...$(id).files].sort((one, other) => inOrder.compare(one.name, other.name));
}

function showPreviews() {
  for (const old of $("previews").children) URL.revokeObjectURL(old.src);
  const files = [...chosen("reference"), ...chosen("frames")];
  const elements = files.map((file) => {
    const element = document.createElement(file.type.startsWith("video/") ? "video" : "img");
    return Object.assign(element, { src: URL.createObjectURL(file), alt: file.name, title: file.name, muted: true });
  });
  $("previews").replaceChildren(...elements);
  $("previews").hidden = !elements.length;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => (clearTimeout(timer), reject(new DOMException("Cancelled", "AbortError")));
    signal.addEventListener("abort", stop, { once: true });
  });
}
