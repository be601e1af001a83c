/** The panel of the result: partial images, progress, the finished image or clip, and its download. */

import { $ } from "./fields.js";

const QUIET = matchMedia("(prefers-reduced-motion: reduce)");
let address = null;

$("image").addEventListener("load", ({ target }) => fit(target, target.naturalWidth / target.naturalHeight));
$("video").addEventListener("loadedmetadata", ({ target }) => fit(target, target.videoWidth / target.videoHeight));

function fit(element, ratio) {
  element.style.setProperty("--ratio", ratio);
}

/** Show that work begins; the last result stays, faded, until the first partial image. */
export function begin() {
  $("frame").dataset.state = "waiting";
  $("frame").scrollIntoView({ block: "nearest", behavior: QUIET.matches ? "instant" : "smooth" });
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
}

/** Show how much is done, from 0 to 1. */
export function progress(share) {
  $("progress").value = share;
}

/** Show an unfinished image. */
export function partial(event) {
  showImage(dataUrl(event), "An unfinished image");
  forget();
  $("frame").dataset.state = "partial";
}

/** Show the finished image of an `image_generation.completed` event, and the controls it was made with. */
export function finishImage(event, { prompt, name, facts, controls }) {
  const type = `image/${event.output_format ?? "png"}`;
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  offer(new Blob([bytes], { type }), `${name}.${event.output_format ?? "png"}`);
  showImage(address, prompt || "The result");
  $("sent-images").replaceChildren(...controls.map(controlImage));
  $("sent").hidden = !controls.length;
  finish(facts);
}

/** Show a finished clip. */
export function finishClip(blob, { name, facts }) {
  offer(blob, `${name}.mp4`);
  const video = $("video");
  video.src = address;
  video.hidden = false;
  $("image").hidden = $("placeholder").hidden = true;
  if (!QUIET.matches) video.play().catch(() => {}); // a browser may forbid to start by itself
  $("delete").hidden = false;
  finish(facts);
}

function finish(facts) {
  $("facts").textContent = facts;
  $("frame").dataset.state = "done";
  $("progress").hidden = true;
}

/** Show that work ended without a result. */
export function stop() {
  $("progress").hidden = true;
  const shown = !$("image").hidden || !$("video").hidden;
  $("frame").dataset.state = shown ? "stopped" : "empty";
}

/** Show nothing but what will be shown. */
export function empty(task) {
  const coming = task === "video" ? "The clip will appear here." : "The image will appear here, step by step.";
  $("placeholder").textContent = coming;
  $("progress").hidden = true;
  for (const id of ["image", "video"]) {
    $(id).hidden = true;
    $(id).removeAttribute("src");
  }
  $("placeholder").hidden = false;
  forget();
  $("frame").dataset.state = "empty";
}

/** Remove what belongs to a finished result. */
function forget() {
  $("download").hidden = $("delete").hidden = $("sent").hidden = true;
  $("facts").textContent = "";
}

function offer(blob, name) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(blob);
  Object.assign($("download"), { href: address, download: name, hidden: false });
}

function showImage(source, description) {
  Object.assign($("image"), { src: source, alt: description, hidden: false });
  $("video").hidden = $("placeholder").hidden = true;
}

function controlImage(source) {
  const image = new Image();
  return Object.assign(image, { src: source, alt: "The control image that was sent" });
}

function dataUrl(event) {
  return `data:image/${event.output_format ?? "png"};base64,${event.b64_json}`;
}
