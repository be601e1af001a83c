"""Getting a bundle ready to be served: it reads prompts, its engines are open and warm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from PIL import Image

from controlnext.bundle.manifest import Manifest
from controlnext.errors import EngineError, InputError
from controlnext.families import Family
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.pipelines.video import VideoPipeline

logger = logging.getLogger(__name__)

_SIDE = 512
"""Height and width of the warm-up step of a model that does not say what size it was made for."""
LARGEST_ON_CPU = 256
"""Largest height and width of the warm-up step on a processor: there it makes no later step faster, and at
full size it would take minutes. On a GPU kernels are chosen for the size."""


def check_takes_prompts(bundle: Path, manifest: Manifest, family: Family) -> None:
    """Raise :class:`InputError` for a bundle without text encoders: requests bring texts, not embeddings."""
    missing = [name for name in family.prompt_encoders if name not in manifest.graphs]
    if missing:
        raise InputError(
            f"{bundle} cannot be served: it has no {', '.join(missing)} to read prompts with; export it"
            " from a base that has text encoders"
        )


def warm_up(pipe: Pipeline, largest: int) -> None:
    """Open the engines, run one step and decode its result.

    The size is that which the model was made for, with sides of at most ``largest``, and on a processor of at
    most 256 pixels.
    """
    for spec in pipe.family.graphs:
        if spec.runs and spec.name in pipe.bundle.manifest.graphs:
            pipe.bundle.engine(spec.name)
    if "cuda" not in pipe.backend:
        largest = min(largest, LARGEST_ON_CPU)
    try:
        pipe(**black_call(pipe, largest), num_inference_steps=1, output_type="np")
    except EngineError as error:
        # built for other sizes
        logger.warning("no warm-up step of %s: %s", pipe.bundle.path, error)


def black_call(pipe: Pipeline, largest: int) -> dict[str, Any]:
    """Return the arguments of a call with black images; a clip has two frames."""
    manifest, family = pipe.bundle.manifest, pipe.family
    made_for = family.made_for(manifest.configs[family.denoiser]) or (_SIDE, _SIDE)
    multiple = family.size_multiple
    height, width = (max(multiple, min(side, largest) // multiple * multiple) for side in made_for)
    image = Image.new("RGB", (width, height))
    if isinstance(pipe, VideoPipeline):
        return {"image": image, "control_images": one_or_all([[image] * 2] * len(pipe.controls))}
    return {"prompt": "", "control_image": one_or_all([image] * len(pipe.controls))}
