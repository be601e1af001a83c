"""The requests that the fuzzer changes: one for each route of the server, with all of their fields."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from fuzz.makers import MAKERS

KEY = "a-key"
IMAGE = base64.b64encode(MAKERS["image"]()).decode()
BOUNDARY = "0a1b2c3d"
COMMON: dict[str, Any] = {
    **{"model": "toy", "size": "16x16", "control_scale": [0.9], "seed": 7, "num_inference_steps": 2},
    **{"guidance_scale": 3.5, "sampler": "euler", "control_start": 0.0, "control_end": 0.9},
    **{"guidance_end": 1.0, "cache_interval": 1, "user": "x", "preprocess": "none"},
}
OF_IMAGES: dict[str, Any] = {
    **{"prompt": "a cat", "negative_prompt": "grey", "strength": 0.9, "n": 1, "response_format": "b64_json"},
    **{"output_format": "webp", "output_compression": 90, "background": "auto", "quality": "auto"},
    **{"style": "vivid", "moderation": "auto", "safety_identifier": "y", "overlay": False},
    **{"padding_mask_crop": 2, "lora": {"ink": 0.5}},
}
PLAIN = {"model": "toy", "prompt": "a cat", "seed": 7, "num_inference_steps": 2, "sampler": "euler"}
PLAIN |= {"control_image": IMAGE, "size": "16x16"}
CLIP = {"model": "clips", "size": "16x16", "seed": 7, "num_inference_steps": 2, "num_frames": 2, "fps": 7}
CLIP |= {"frames_per_batch": 2, "overlap": 1, "min_guidance_scale": 1, "guidance_scale": 2}
CLIP |= {"noise_aug_strength": 0.02, "decode_chunk_size": 1, "control_scale": 1, "prompt": "x"}
STEPS = {"sigmas": [14.0, 3.0], "timesteps": [900, 200], "upscale": 1.5, "upscale_mode": "pixel"}
HARMLESS = {"user": "x", "quality": "auto", "style": "vivid", "moderation": "auto", "safety_identifier": "y"}


def write_calls(directory: Path) -> None:
    """Write the requests: ``NAME.head.json``, and a body ``NAME.body.json`` or ``NAME.form.json``."""
    images = {"image": IMAGE, "mask": IMAGE, "control_image": [IMAGE]}
    generations = "/v1/images/generations"
    several = PLAIN | {"sigmas": STEPS["sigmas"]}
    del several["num_inference_steps"]
    _json(directory, "10-generations", generations, COMMON | OF_IMAGES | images)
    _json(directory, "11-steps", generations, several)
    _json(directory, "12-upscale", generations, PLAIN | {"upscale": 1.5, "upscale_mode": "pixel"})
    _json(directory, "13-stream", generations, PLAIN | {"stream": True, "partial_images": 1})
    edit = {**PLAIN, "size": "16x16", "strength": 0.5, "overlay": "true", "lora": '{"ink": 0.5}'}
    edit |= {"control_scale": "[0.5]", "n": 1}
    del edit["control_image"]
    _form(directory, "20-edits", "/v1/images/edits", edit, ("image", "mask", "control_image"))
    clip = CLIP | {"input_reference": {"image_url": f"data:image/png;base64,{IMAGE}"}}
    _json(directory, "30-clip", "/v1/videos", clip | {"control_clip": [IMAGE, IMAGE]})
    _form(directory, "31-clip", "/v1/videos", CLIP, ("input_reference", "control_clip", "control_clip"))
    _head(directory, "40-list", "GET", "/v1/videos", "limit=3&order=asc&after={video}")
    _head(directory, "41-video", "GET", "/v1/videos/{video}")
    _head(directory, "42-content", "GET", "/v1/videos/{video}/content", "variant=video", Range="bytes=0-9")
    _head(directory, "43-delete", "DELETE", "/v1/videos/{video}")
    _head(directory, "50-models", "GET", "/v1/models/toy")
    _head(directory, "51-page", "GET", "/page/index.html", **{"If-None-Match": '"x"'})
    _head(directory, "52-metrics", "GET", "/metrics")
    _json(directory, "80-harmless", generations, PLAIN | HARMLESS)
    _json(directory, "90-last", generations, PLAIN)


def _head(directory: Path, name: str, method: str, path: str, query: str = "", **headers: Any) -> None:
    given = {"Host": "127.0.0.1:8000", "Authorization": f"Bearer {KEY}", "Accept": "*/*", **headers}
    head = {"method": method, "path": path, "query": query, "headers": given, "chunk": 65536, "leaves": False}
    (directory / f"{name}.head.json").write_text(json.dumps(head))


def _json(directory: Path, name: str, path: str, fields: dict[str, Any]) -> None:
    body = json.dumps(fields)
    (directory / f"{name}.body.json").write_text(body)
    _head(directory, name, "POST", path, **{"Content-Type": "application/json; charset=utf-8"})


def _form(directory: Path, name: str, path: str, fields: dict[str, Any], files: tuple[str, ...]) -> None:
    parts: list[dict[str, Any]] = [
        {"head": [f'Content-Disposition: form-data; name="{key}"'], "content": str(value)}
        for key, value in fields.items()
    ]
    for number, key in enumerate(files):
        heads = [f'Content-Disposition: form-data; name="{key}"; filename="{number}.png"']
        content = {"maker": "image", "options": {"format": "PNG"}}
        parts.append({"head": [*heads, "Content-Type: image/png"], "content": content})
    form = {"boundary": BOUNDARY, "parts": parts, "end": f"--{BOUNDARY}--\r\n"}
    (directory / f"{name}.form.json").write_text(json.dumps(form))
    _head(directory, name, "POST", path, **{"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
