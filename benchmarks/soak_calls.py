"""The calls of the soak test: of every kind that a bundle allows, the same in every process, and their
digests."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from batching import PROMPTS, outline
from soak_bundles import Subject

from controlnext.errors import InputError
from controlnext.runtime import Pipeline

SIZES = ((64, 64), (64, 96), (96, 64))
"""Heights and widths of results."""
REFUSED: Sequence[dict[str, Any]] = (
    {"sampler": "none of them"},
    {"num_inference_steps": 0},
    {"latents": np.full((1, 4, 8, 8), np.nan, np.float32)},
    {"control_scale": "strong"},
    {"height": 7},
    {"latents": np.zeros((3, 2), np.float32)},
)
"""Changes that make a call one that is refused."""

Call = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a call gives: the last latents, and images of levels from 0 to 1."""

    latents: np.ndarray
    images: np.ndarray

    @property
    def digest(self) -> str:
        """The checksum of every bit."""
        content = hashlib.sha256(np.ascontiguousarray(self.latents).data)
        content.update(np.ascontiguousarray(self.images).data)
        return content.hexdigest()


def open_subject(subject: Subject, backend: str = "auto", threads: int | None = None) -> Any:
    """Return the pipeline of a bundle with its LoRAs."""
    pipe = Pipeline.load(subject.bundle, backend, "cpu", threads=threads)
    for name, path in subject.loras.items():
        pipe.add_lora(name, path)
    return pipe


def make_call(number: int, pipe: Any) -> Call:
    """Return the arguments of a call of a pipeline."""
    if pipe.family.task == "video":
        return _clip_call(random.Random(number), number, pipe)
    return _image_call(random.Random(number), number, pipe)


def result_of(pipe: Any, made: Any) -> Result:
    """Return the result of what a call with output type "np" returned."""
    return Result(made.latents, made.frames if pipe.family.task == "video" else made.images)


def run(pipe: Any, call: Call) -> Result:
    """Make a call."""
    return result_of(pipe, pipe(**call, output_type="np"))


def refuse(pipe: Any, call: Call, number: int) -> None:
    """Make a call that is refused; raise :class:`AssertionError` if it is not."""
    try:
        pipe(**{**call, **REFUSED[number % len(REFUSED)]})
    except InputError:
        return
    raise AssertionError(f"the call was accepted: {REFUSED[number % len(REFUSED)]}")


def leave(pipe: Any, call: Call) -> None:
    """Begin a call and leave it after its first step."""
    steps = pipe.stream(**call)
    next(steps)
    steps.close()


def fresh_results(subject: Subject, numbers: Sequence[int], *options: Any) -> list[Result]:
    """Return the results of the calls with these numbers in a process of their own, the last one first;
    ``options``: those of :func:`open_subject`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_results, subject, numbers, options).result()


def _results(subject: Subject, numbers: Sequence[int], options: Sequence[Any]) -> list[Result]:
    with open_subject(subject, *options) as pipe:
        made = [run(pipe, make_call(number, pipe)) for number in reversed(numbers)]
    return made[::-1]


def _common(chance: random.Random, pipe: Any) -> Call:
    graph, steps = pipe.bundle.manifest.graphs[pipe.family.denoiser], chance.randint(2, 5)
    return {
        "num_inference_steps": steps,
        "sampler": chance.choice(pipe.family.samplers),
        "seed": chance.randrange(1000),
        "control_scale": chance.choice([0.0, 0.5, 1.0]),
        "control_end": chance.choice([1.0, 1.0, 0.5]),
        "guidance_end": chance.choice([1.0, 1.0, 0.5]),
        "cache_interval": chance.choice([1, 1, 2]) if graph.shallow else 1,
    }


def _image_call(chance: random.Random, number: int, pipe: Any) -> Call:
    height, width = chance.choice(SIZES)
    controls = [outline(64, number + control) for control in range(len(pipe.controls))]
    call = {
        **_common(chance, pipe),
        "prompt": chance.choice(PROMPTS),
        "control_image": controls if len(controls) > 1 else controls[0],
        "guidance_scale": chance.choice([1.0, 3.0]),
        "num_images_per_prompt": chance.choice([1, 1, 2]),
        "height": height,
        "width": width,
    }
    if len(controls) > 1:
        call["control_scale"] = [chance.choice([0.0, 0.5, 1.0]) for _ in controls]
    if pipe.loras and chance.random() < 0.5:
        names = chance.sample(sorted(pipe.loras), chance.randint(1, len(pipe.loras)))
        call["lora"] = {name: chance.choice([0.4, 1.0]) for name in names}
    adapters = pipe.bundle.manifest.graphs[pipe.family.denoiser].adapters
    if adapters and chance.random() < 0.5:
        prompts = [chance.choice([outline(40, number), None]) for _ in adapters]
        call["ip_adapter_image"] = prompts if len(prompts) > 1 else prompts[0]
    return call | _start(chance, number, pipe)


def _start(chance: random.Random, number: int, pipe: Any) -> Call:
    """Return the arguments of a start from an image, for some calls."""
    kind = chance.choice(["none", "image", "mask", "upscale"])
    if kind == "none" or "vae_encoder" not in pipe.bundle.manifest.graphs:
        return {}
    if kind == "upscale":
        return {"upscale": 1.5, "height": 64, "width": 64, "strength": 0.8}
    start = {"image": outline(80, number), "strength": chance.choice([0.5, 0.8])}
    return start | ({"mask_image": outline(80, number + 1)} if kind == "mask" else {})


def _clip_call(chance: random.Random, number: int, pipe: Any) -> Call:
    frames = chance.randint(1, 5)
    clips = [
        [outline(64, number + control + i) for i in range(frames)] for control in range(len(pipe.controls))
    ]
    return {
        **_common(chance, pipe),
        "image": outline(64, number),
        "control_images": clips if len(clips) > 1 else clips[0],
        "max_guidance_scale": chance.choice([0.5, 3.0]),
        "frames_per_batch": 3,
        "overlap": 1,
        "decode_chunk_size": chance.choice([1, 2]),
    }
