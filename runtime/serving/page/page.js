/** The page: picks a bundle, sends the form, shows what comes back, and writes the same call as code. */

import { Api } from "./api.js";
import { Board } from "./board.js";
import { Clips } from "./clip.js";
import { $, clearError, pairSliders, rollSeed, showDefaults, showError } from "./fields.js";
import * as output from "./output.js";
import { codeOf, controlFiles } from "./snippets.js";
import { Stills } from "./stills.js";

const KEY = "controlnext-key";

let models = [];
let running = null;
const api = new Api(() => $("key").value);
const board = new Board(showCode);
const stills = new Stills(api, board);
const clips = new Clips(api);

start();

function start() {
  $("key").value = sessionStorage.getItem(KEY) ?? "";
  board.failed = showError;
  pairSliders();
  listen();
  showCode();
  listModels();
}

function listen() {
  $("key").addEventListener("change", takeKey);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("key-panel").open = false;
    takeKey();
  });
  $("model").addEventListener("change", chooseModel);
  $("form").addEventListener("input", showCode);
  for (const id of ["width", "height"]) $(id).addEventListener("change", () => board.resize());
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  $("cancel").addEventListener("click", () => running?.abort());
  $("delete").addEventListener("click", () => clips.remove().catch(showError));
  document.addEventListener("keydown", shortcuts);
  for (const choice of document.getElementsByName("language")) choice.addEventListener("change", showCode);
  $("copy").addEventListener("click", copyCode);
  $("save-control").addEventListener("click", saveControl);
}

function shortcuts(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  }
  if (event.key === "Escape") {
    $("key-panel").open = false;
    running?.abort();
  }
}

/** Keep a key that is new; a press of Enter tells of it twice. */
function takeKey() {
  if ($("key").value === (sessionStorage.getItem(KEY) ?? "")) return;
  sessionStorage.setItem(KEY, $("key").value);
  listModels();
}

async function listModels() {
  clearError();
  try {
    models = await api.models();
  } catch (error) {
    return showError(error);
  }
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  $("generate").disabled = !models.length;
  chooseModel();
}

function chooseModel() {
  const facts = models.find(({ id }) => id === $("model").value)?.controlnext ?? {};
  const task = facts.task ?? "image";
  if (task !== document.body.dataset.task) output.empty(task);
  document.body.dataset.task = task;
  clearError();
  $("status").textContent = "";
  showDefaults(facts);
  board.suit(facts);
  showCode();
}

function maker() {
  return document.body.dataset.task === "video" ? clips : stills;
}

async function generate() {
  if (running || $("generate").disabled) return;
  clearError();
  rollSeed();
  showCode();
  running = new AbortController();
  setRunning(true);
  output.begin();
  say("Waiting");
  try {
    say(await maker().make(running.signal, say));
  } catch (error) {
    output.stop();
    say(error.name === "AbortError" ? "Cancelled" : "");
    if (error.name !== "AbortError") showError(error);
  } finally {
    running = null;
    setRunning(false);
  }
}

/** Exchange Generate and Cancel, with the focus if one of them has it. */
function setRunning(on) {
  const [shown, gone] = on ? [$("cancel"), $("generate")] : [$("generate"), $("cancel")];
  const focused = document.activeElement === gone;
  shown.hidden = false;
  if (focused) shown.focus({ preventScroll: true });
  gone.hidden = true;
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function showCode() {
  if (!models.length) return;
  const language = document.querySelector("[name=language]:checked").value;
  const base = new URL("v1", document.baseURI).href;
  $("code").textContent = codeOf(language, { ...maker().call(), base, keyed: Boolean($("key").value) });
  $("copied").textContent = "";
  $("save-control").hidden = maker() !== stills || !board.drawn;
}

async function copyCode() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copied").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("code")); // no clipboard outside https and localhost
    $("copied").textContent = "Selected: press Ctrl C";
  }
}

/** Save the control images under the names that the code has. */
function saveControl() {
  const canvases = board.canvases();
  controlFiles(canvases.length).forEach((download, index) => {
    const href = canvases[index].toDataURL("image/png");
    Object.assign(document.createElement("a"), { href, download }).click();
  });
}
