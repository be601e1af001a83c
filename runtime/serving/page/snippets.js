/** The call of the form as code. Images are files beside it, and a key comes from the environment. */

const OPENAI_FIELDS = ["model", "prompt", "size"];
const KEY = "CONTROLNEXT_API_KEY";
const VIDEO = /\.(mp4|m4v|mov|webm|mkv|gif)$/i;

/**
 * Return the code of a call.
 *
 * `call`: `fields` as the HTTP API has them, without images; `files`, a list of names for each image field;
 * `route`, "images/generations", "images/edits" or "videos"; `base`, the address of `/v1`; `keyed`.
 */
export function codeOf(language, call) {
  const stills = { curl, openai, controlnext };
  const clips = { curl: curlClip, openai: openaiClip, controlnext: controlnextClip };
  return (call.route === "videos" ? clips : stills)[language](call);
}

/** The names of the files of control images, which the page offers to save. */
export function controlFiles(count) {
  return count === 1 ? ["control.png"] : Array.from({ length: count }, (_, index) => `control-${index + 1}.png`);
}

function curl(call) {
  return `${command(call)} |\n  jq -r '.data[0].b64_json' | base64 --decode > image.png`;
}

function curlClip(call) {
  const clip = `"${call.base}/videos/$id"`;
  return [
    `id=$(${command(call)} | jq -r .id)`,
    `while ${request(clip, call.keyed)} |`,
    `  jq -e '.status == "queued" or .status == "in_progress"' > /dev/null; do sleep 1; done`,
    `${request(clip.replace("$id", "$id/content"), call.keyed)} --fail -o result.mp4`,
  ].join("\n");
}

function request(address, keyed) {
  return `curl -sS ${address}${keyed ? ` -H "Authorization: Bearer $${KEY}"` : ""}`;
}

function command({ fields, files, route, base, keyed }) {
  const lines = [request(quoted(`${base}/${route}`), keyed)];
  if (route === "images/generations") {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(fields))}`);
  } else {
    for (const [name, names] of Object.entries(files)) {
      const field = names.length > 1 ? `${name}[]` : name;
      for (const file of names) lines.push(`-F ${quoted(`${field}=@${file}`)}`);
    }
    // --form-string: with -F a text that begins with @ or < would name a file
    for (const [name, value] of Object.entries(fields)) {
      lines.push(`--form-string ${quoted(`${name}=${Array.isArray(value) ? JSON.stringify(value) : value}`)}`);
    }
  }
  return lines.join(" \\\n  ");
}

function openai({ fields, files, route, base, keyed }) {
  const own = Object.entries(fields).filter(([name]) => !OPENAI_FIELDS.includes(name));
  const given = OPENAI_FIELDS.filter((name) => name in fields).map((name) => `${name}=${python(fields[name])}`);
  const images = Object.values(files).flat().map((name) => `open(${python(name)}, "rb")`);
  if (images.length) given.push(`image=${images.length > 1 ? `[${images.join(", ")}]` : images[0]}`);
  if (own.length) given.push(`extra_body=${python(Object.fromEntries(own))}`);
  return [
    "import base64",
    ...(keyed ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from openai import OpenAI",
    "",
    client(base, keyed),
    `result = client.images.${route === "images/edits" ? "edit" : "generate"}(`,
    ...given.map((argument) => `    ${argument},`),
    ")",
    'Path("image.png").write_bytes(base64.b64decode(result.data[0].b64_json))',
  ].join("\n");
}

/** OpenAI's method takes one file; the request that it makes takes more. */
function openaiClip({ fields, files, base, keyed }) {
  const opened = Object.entries(files).flatMap(([field, names]) =>
    names.map((name) => `        (${python(field)}, open(${python(name)}, "rb")),`),
  );
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "from openai.types import Video",
    "",
    client(base, keyed),
    "job = client.post(",
    '    "/videos",',
    "    cast_to=Video,",
    `    body=${python(fields)},`,
    "    files=[",
    ...opened,
    "    ],",
    '    options={"headers": {"Content-Type": "multipart/form-data"}},',
    ")",
    "job = client.videos.poll(job.id)",
    'client.videos.download_content(job.id).write_to_file("result.mp4")',
  ].join("\n");
}

function client(base, keyed) {
  return `client = OpenAI(base_url=${python(base)}, api_key=${keyed ? `os.environ[${python(KEY)}]` : '"none"'})`;
}

/** The pipeline's call in a process of one's own; its size is two arguments. */
function controlnext({ fields, files }) {
  const { model, size, preprocess, ...rest } = fields;
  const images = controlArguments(files, preprocess);
  return [
    ...(images.length ? ["from PIL import Image", ""] : []),
    "from controlnext.runtime import Pipeline",
    ...(preprocess ? ["from controlnext.runtime.preprocess import preprocess"] : []),
    "",
    `with Pipeline.load(${python(`build/${model}`)}) as pipe:  # the directory of the bundle`,
    ...calling([...images, ...argumentsOf({ ...rest, ...sides(size) })]),
    'out.images[0].save("image.png")',
  ].join("\n");
}

function controlnextClip({ fields, files }) {
  const { model, size, fps, guidance_scale: guidance, ...rest } = fields;
  const { input_reference: [image] = ["image.png"], control_clip: frames = [] } = files;
  const guided = guidance === undefined ? {} : { max_guidance_scale: guidance };
  const isVideo = frames.length === 1 && VIDEO.test(frames[0]);
  const clip = isVideo
    ? `load_video(${python(frames[0])})`
    : `[${frames.map((name) => `Image.open(${python(name)})`).join(", ")}]`;
  const asVideo = isVideo && fps === undefined;
  const rate = asVideo ? `video_fps(${python(frames[0])})` : fps;
  const used = ["export_to_video", ...(isVideo ? ["load_video"] : []), ...(asVideo ? ["video_fps"] : [])];
  return [
    "from PIL import Image",
    "",
    "from controlnext.runtime import Pipeline",
    `from controlnext.runtime.media import ${used.join(", ")}`,
    "",
    `with Pipeline.load(${python(`build/${model}`)}) as pipe:  # the directory of the bundle`,
    ...calling([
      `image=Image.open(${python(image)})`,
      `control_images=${clip}`,
      ...argumentsOf({ ...rest, ...guided, ...sides(size) }),
    ]),
    `export_to_video(out.frames[0], "result.mp4"${rate === undefined ? "" : `, fps=${rate}`})`,
  ].join("\n");
}

function sides(size) {
  if (!size) return {};
  const [width, height] = size.split("x").map(Number);
  return { height, width };
}

function argumentsOf(values) {
  return Object.entries(values).map(([name, value]) => `${name}=${python(value)}`);
}

function calling(given) {
  return ["    out = pipe(", ...given.map((argument) => `        ${argument},`), "    )"];
}

function controlArguments(files, preprocess) {
  const opened = Object.values(files).flat().map((name) => {
    const image = `Image.open(${python(name)})`;
    return preprocess ? `preprocess(${python(preprocess)}, ${image})` : image;
  });
  if (!opened.length) return [];
  return [`control_image=${opened.length > 1 ? `[${opened.join(", ")}]` : opened[0]}`];
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A Python literal. JSON's texts and numbers are Python's too. */
function python(value) {
  if (value === undefined || value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${python(name)}: ${python(item)}`).join(", ")}}`;
}
