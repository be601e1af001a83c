/** The call of the form as code. Images are files beside it, and a key comes from the environment. */

const OPENAI_FIELDS = ["model", "prompt", "size"];
const KEY = "CONTROLNEXT_API_KEY";

/**
 * Return the code of a call.
 *
 * `call`: `fields` as the HTTP API has them, without images; `files`, a list of names for each image field;
 * `route`, "images/generations", "images/edits" or "videos"; `base`, the address of `/v1`; `keyed`.
 */
export function codeOf(language, call) {
  const makers = { curl, openai: call.route === "videos" ? openaiClip : openai, controlnext };
  return makers[language](call);
}

/** The names of the files of control images, which the page offers to save. */
export function controlFiles(count) {
  return count === 1 ? ["control.png"] : Array.from({ length: count }, (_, index) => `control-${index + 1}.png`);
}

function curl({ fields, files, route, base, keyed }) {
  const lines = [`curl -sS ${quoted(`${base}/${route}`)}`];
  if (keyed) lines.push(`-H "Authorization: Bearer $${KEY}"`);
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
  const command = lines.join(" \\\n  ");
  if (route === "videos") return `${command}\n# then GET ${base}/videos/ID until it is completed, and ID/content`;
  return `${command} |\n  jq -r '.data[0].b64_json' | base64 --decode > image.png`;
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

function openaiClip({ fields, files, base, keyed }) {
  const { model, size, ...own } = fields;
  const clip = files.control_clip ?? [];
  const frames = clip.map((name) => `("control_clip", open(${python(name)}, "rb"))`);
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    client(base, keyed),
    "job = client.post(",
    '    "/videos",',
    "    cast_to=object,",
    `    body=${python({ model, size, ...own })},`,
    `    files=[("input_reference", open(${python(files.input_reference?.[0] ?? "image.png")}, "rb")), ${frames.join(", ")}],`,
    '    options={"headers": {"Content-Type": "multipart/form-data"}},',
    ")",
    'video = client.videos.poll(job["id"])',
    'client.videos.download_content(video.id).write_to_file("clip.mp4")',
  ].join("\n");
}

function client(base, keyed) {
  return `client = OpenAI(base_url=${python(base)}, api_key=${keyed ? `os.environ[${python(KEY)}]` : '"none"'})`;
}

/** The pipeline's call in a process of one's own; its size is two arguments. */
function controlnext({ fields, files, route }) {
  const { model = "BUNDLE", size, preprocess, guidance_scale: guidance, ...rest } = fields;
  const [width, height] = size?.split("x").map(Number) ?? [];
  const clip = route === "videos";
  const guided = guidance === undefined ? {} : { [clip ? "max_guidance_scale" : "guidance_scale"]: guidance };
  const named = { ...rest, ...guided, ...(size && { height, width }) };
  const images = clip ? clipArguments(files) : controlArguments(files, preprocess);
  const given = [...images, ...Object.entries(named).map(([name, value]) => `${name}=${python(value)}`)];
  const saved = clip ? 'write_clip(Path("clip.mp4"), out.frames[0])' : 'out.images[0].save("image.png")';
  return [
    ...importsOf(clip, images.length, preprocess),
    "",
    `with Pipeline.load(${python(`build/${model}`)}) as pipe:`,
    "    out = pipe(",
    ...given.map((argument) => `        ${argument},`),
    "    )",
    saved,
  ].join("\n");
}

function importsOf(clip, images, preprocess) {
  return [
    ...(images ? ["from PIL import Image", ""] : []),
    "from controlnext.runtime import Pipeline",
    ...(preprocess ? ["from controlnext.runtime.preprocess import preprocess"] : []),
  ];
}

function controlArguments(files, preprocess) {
  const opened = Object.values(files).flat().map((name) => {
    const image = `Image.open(${python(name)})`;
    return preprocess ? `preprocess(${python(preprocess)}, ${image})` : image;
  });
  if (!opened.length) return [];
  return [`control_image=${opened.length > 1 ? `[${opened.join(", ")}]` : opened[0]}`];
}

function clipArguments({ input_reference: [image] = [], control_clip: frames = [] }) {
  const given = image ? [`image=Image.open(${python(image)})`] : [];
  const opened = frames.map((name) => `Image.open(${python(name)})`);
  return opened.length ? [...given, `control_images=[${opened.join(", ")}]`] : given;
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
