/** An image: its request, and the events of its making. */

import { $, commonFields, defined } from "./fields.js";
import * as output from "./output.js";
import { controlFiles } from "./snippets.js";

const PARTIALS = 8; // at most: each is decoded for this page alone

export class Stills {
  constructor(api, board) {
    Object.assign(this, { api, board });
  }

  #fields(options) {
    return defined({
      ...commonFields(),
      prompt: $("prompt").value,
      negative_prompt: $("negative").value || undefined,
      ...this.board.fields(options),
    });
  }

  /** The call of the form, for `codeOf`. */
  call() {
    const fields = this.#fields({ images: false });
    if (!this.board.drawn) return { route: "images/generations", fields, files: {} };
    return { route: "images/edits", fields, files: { image: controlFiles(this.board.sketch.layers.length) } };
  }

  async make(signal, say) {
    this.board.check();
    const fields = this.#fields();
    const controls = this.board.pictures();
    const partials = Math.min(PARTIALS, Math.max((fields.num_inference_steps || 20) - 1, 1));
    const began = performance.now();
    for await (const event of this.api.image({ ...fields, partial_images: partials }, signal)) {
      if (event.type === "image_generation.partial_image") {
        output.partial(event);
        output.progress((event.partial_image_index + 1) / (partials + 1));
        say("Denoising");
      } else if (event.type === "image_generation.completed") {
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        const seed = event.seed ?? fields.seed;
        const facts = [event.size ?? fields.size, `seed ${seed}`, `${seconds} s`].filter(Boolean).join(" · ");
        const name = `controlnext-${seed ?? "image"}`;
        output.finishImage(event, { prompt: fields.prompt, name, facts, controls });
        return `Done in ${seconds} s`;
      }
    }
    throw new Error("The server ended the answer before the image was finished.");
  }
}
