/** The fields of the form: numbers and their sliders, settings of a bundle, and the field an error is about. */

export const $ = (id) => document.getElementById(id);

const SLIDERS = ["steps", "guidance", "scale", "clip-scale"];

/** Keep every number and its slider at the same value. */
export function pairSliders() {
  for (const id of SLIDERS) {
    const number = $(id);
    const slider = $(`${id}-range`);
    slider.addEventListener("input", () => setNumber(id, slider.value));
    number.addEventListener("input", () => followNumber(number, slider));
  }
}

function followNumber(number, slider) {
  if (number.value !== "") slider.value = number.value;
}

/** Set a number; with nothing the field is empty, and the server's own default holds. */
export function setNumber(id, value) {
  const number = $(id);
  number.value = value ?? "";
  const slider = $(`${id}-range`);
  if (slider) followNumber(number, slider);
}

/** Return a field's number; undefined if it is empty. */
export function numberOf(id) {
  const { value } = $(id);
  return value === "" ? undefined : Number(value);
}

/** Show what a bundle says of itself in `GET /v1/models`; a server may leave any of it out. */
export function showDefaults({ samplers = [], default_steps, default_guidance, size }) {
  setNumber("steps", default_steps);
  setNumber("guidance", default_guidance);
  const auto = new Option("auto", "");
  $("sampler").replaceChildren(auto, ...samplers.map((name) => new Option(name, name)));
  const [width, height] = sizeOf(size);
  setNumber("width", width);
  setNumber("height", height);
}

/** A size as `[width, height]`, from a number, "WIDTHxHEIGHT" or a pair; 512 if it is not known. */
export function sizeOf(size) {
  const parts = Array.isArray(size) ? size : String(size ?? 512).split("x");
  const [width, height = width] = parts.map(Number);
  return [width, height];
}

/** Return the fields that image and clip requests share, without those left to the server. */
export function commonFields() {
  const [width, height] = [numberOf("width"), numberOf("height")];
  return defined({
    model: $("model").value || undefined,
    size: width && height ? `${width}x${height}` : undefined,
    num_inference_steps: numberOf("steps"),
    guidance_scale: numberOf("guidance"),
    guidance_end: numberOf("guidance-end"),
    cache_interval: numberOf("cache-interval"),
    sampler: $("sampler").value || undefined,
    seed: numberOf("seed"),
  });
}

export function defined(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

export function rollSeed() {
  if ($("new-seed").checked) setNumber("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Show an error, and mark and focus the field that it is about. */
export function showError(error) {
  $("alert").textContent = error.message;
  const fields = error.status === 401 ? [$("key")] : fieldsOf(error.param);
  for (const field of fields) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "alert");
  }
  if (error.status === 401) $("key-panel").open = true;
  fields[0]?.focus();
}

export function clearError() {
  $("alert").textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

/** The visible fields of a parameter; "control_image[1]" and "control_image.1" are of `control_image`. */
function fieldsOf(param) {
  const name = /^\w+/.exec(param ?? "")?.[0];
  const names = name === "size" ? ["width", "height"] : [name];
  const all = [...document.querySelectorAll("[data-param]")];
  return all.filter((field) => names.includes(field.dataset.param) && field.checkVisibility());
}
