/** The server's routes, as any client sees them. Addresses are relative: the page works behind a prefix too. */

export class ApiError extends Error {
  constructor(message, { param = null, status = 0 } = {}) {
    super(message);
    Object.assign(this, { param, status });
  }
}

export class Api {
  /** `key` returns the API key of the moment, empty for none. */
  constructor(key) {
    this.key = key;
  }

  async models() {
    const list = await this.#json("v1/models");
    return list.data;
  }

  /** Yield the events of one image: `image_generation.partial_image`, then `image_generation.completed`. */
  async *image(fields, signal) {
    const body = JSON.stringify({ ...fields, stream: true });
    const headers = { "Content-Type": "application/json" };
    const response = await this.#fetch("v1/images/generations", { method: "POST", headers, body, signal });
    for await (const event of serverEvents(response.body)) {
      if (event.error) throw new ApiError(event.error.message, event.error);
      yield event;
    }
  }

  createClip(form, signal) {
    return this.#json("v1/videos", { method: "POST", body: form, signal });
  }

  clip(id, signal) {
    return this.#json(`v1/videos/${encodeURIComponent(id)}`, { signal });
  }

  async clipContent(id, signal) {
    const response = await this.#fetch(`v1/videos/${encodeURIComponent(id)}/content`, { signal });
    return response.blob();
  }

  deleteClip(id) {
    return this.#json(`v1/videos/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  async #json(path, options) {
    return (await this.#fetch(path, options)).json();
  }

  async #fetch(path, options = {}) {
    const key = this.key();
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached; check that it still runs.");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(message, { param: error?.param, status: response.status });
}

/** Yield the data of server-sent events, parsed as JSON. */
export async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
