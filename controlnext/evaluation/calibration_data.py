"""Sampling runs for int8 calibration, over prompts, control images, all timesteps and guidance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import Backend, Engine, select_backend
from controlnext.errors import InputError
from controlnext.evaluation.inputs import default_run, run_arguments
from controlnext.families import get_family
from controlnext.image_input import IMAGE_SUFFIXES
from controlnext.regular import check_regular
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.media.image_files import read_image
from controlnext.types import Feed, Progress

Denoise = Callable[[Feed], dict[str, np.ndarray]]
"""A function in place of a denoiser's engine: inputs by name to outputs by name."""

STEPS = 8
"""Number of steps of the first trajectory; each further one has one more, so that timesteps differ."""
SCALES = (1.0, 0.5, 1.5, 0.75)
"""Control scales, used by the trajectories in turn."""
FULL = 256
"""Side in pixels: models of this sample size or less are sampled at it, others at half of theirs, but not
below this."""
_LONGEST = 1 << 20
"""Bytes of the longest prompt."""
CLIP = 3
"""Number of frames of a calibration clip."""


@dataclass(frozen=True)
class Example:
    """A prompt and a control image for one trajectory."""

    prompt: str
    image: Image.Image


def default_examples() -> list[Example]:
    """Return the built-in examples: drawn edges, thick and thin, sparse and dense, each with a prompt."""
    prompts = (
        "a portrait of a woman with red hair, soft light, photograph",
        "a red circle on a blue background",
        "an old stone house by a lake, mountains, oil painting",
        "a robot in a busy street at night, neon lights, highly detailed",
    )
    return [Example(prompt, _drawing(index)) for index, prompt in enumerate(prompts)]


def _drawing(index: int, size: int = 512) -> Image.Image:
    rng = np.random.default_rng(index)
    image = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(image)
    for _ in range(3 + 6 * index):
        (left, top), (width, height) = (
            rng.integers(0, 3 * size // 4, 2),
            rng.integers(size // 8, size // 2, 2),
        )
        box = (int(left), int(top), int(left + width), int(top + height))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, outline="white", width=2 + index)
    return image


def read_examples(directory: Path) -> list[Example]:
    """Read the images of a directory in the order of their names, with the prompt of NAME.png in NAME.txt.

    Raises :class:`InputError` if there are no images, or an image has no prompt.
    """
    if not directory.is_dir():
        raise InputError(
            f"calibration {directory} is not a directory; give one with images and a .txt prompt for each"
        )
    texts = sorted(directory.glob("*.txt"))
    images = sorted(path for path in directory.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InputError(f"calibration {directory} has no image; add NAME.png and its prompt as NAME.txt")
    if missing := [p.name for p in images if p.with_suffix(".txt") not in texts]:
        raise InputError(
            f"calibration {directory}: no prompt for {', '.join(missing[:5])}; add a .txt file of the same"
            " name for each"
        )
    return [Example(_prompt(p.with_suffix(".txt")), read_image(p)) for p in images]


def _prompt(file: Path) -> str:
    try:
        return check_regular(file, _LONGEST).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"calibration: cannot read the prompt in {file}: {reason}; give a text file of UTF-8"
        ) from error


def run_trajectories(
    bundle: Path, denoise: Denoise, examples: Sequence[Example], report: Progress = lambda _stage, _done: None
) -> None:
    """Sample every example from ``bundle`` with ``denoise`` in place of its denoiser's engine.

    Large models are sampled at half their height and width, a quarter of the work. A bundle without text
    encoders gets random embeddings. ``report`` gets the stage and the fraction done.
    """
    manifest = read_manifest(bundle)
    backend = _Substitute(get_family(manifest.family).denoiser, denoise)
    with Pipeline.of(Bundle(bundle, backend, cache=False)) as pipeline:
        for index, example in enumerate(examples):
            for step in pipeline.stream(**_arguments(manifest, example, index)):
                report("calibrating", (index + (step.index + 1) / step.total) / len(examples))


def _arguments(manifest: Manifest, example: Example, index: int) -> dict[str, object]:
    family, run = get_family(manifest.family), default_run(manifest)
    sample_size = family.vae_factor * manifest.configs[family.denoiser]["sample_size"]
    side = max(sample_size // 2, min(sample_size, FULL)) // family.size_multiple * family.size_multiple
    run = replace(
        run,
        prompt=None if run.prompt is None else example.prompt,
        control_image=example.image.resize((side, side)),
        steps=STEPS + index,
        height=side,
        width=side,
        frames=CLIP if run.frames else None,
        image_prompt=bool(manifest.graphs[family.denoiser].adapters),
    )
    scale = {"control_scale": SCALES[index % len(SCALES)]}
    return {**run_arguments(manifest, run), **scale, "seed": index}


class _Substitute(Backend):
    """ONNX Runtime for all graphs but one, which a function replaces."""

    def __init__(self, graph_name: str, run: Denoise) -> None:
        self.graph_name, self.run = graph_name, run
        self.others = select_backend("onnxruntime", "auto")

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        if graph_name == self.graph_name:
            return _Function(manifest, graph_name, self.run)
        return self.others.open(bundle, manifest, graph_name, cache=cache)


class _Function(Engine):
    least_rank = 1  # observers measure ranges, which tensors without elements do not have

    def __init__(self, manifest: Manifest, graph_name: str, run: Denoise) -> None:
        super().__init__(manifest, graph_name, "calibration")
        self.function = run

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        return self.function(feed)

    def _close(self) -> None:
        """Do nothing: there are no resources to release."""
