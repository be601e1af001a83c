"""The control images and scales of a request for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from controlnext.errors import InputError, begins_with
from controlnext.image_input import Bands, ImageReader
from controlnext.runtime.request import Request, as_floats
from controlnext.runtime.vae import read_images
from controlnext.types import FloatArray


def control_images(given: Any, request: Request) -> list[Bands]:
    """Return the images of one control: one, or one for each prompt."""
    if given is None:
        raise InputError(
            "no control image was given; set `control_image` (`control_scale` 0 switches it off)",
            argument="control_image",
        )
    return images_of_prompts(given, request, "control_image", "control images")


def images_of_prompts(given: Any, request: Request, argument: str, called: str) -> list[Bands]:
    """Return the images of an argument: one, or one for each prompt."""
    with begins_with(argument):
        images = read_images(given, ImageReader(argument))
    count = request.prompt_count
    if len(images) not in (1, count):
        given_for = "one prompt; give one" if count == 1 else f"{count} prompts; give one, or {count}"
        raise InputError(f"{len(images)} {called} were given for {given_for}", argument=argument)
    return images


def for_every_row(images: FloatArray, request: Request, halves: int) -> FloatArray:
    """Return a single control image as it is; repeat several for each row of a guided batch."""
    if len(images) == 1:
        return images
    return np.tile(np.repeat(images, request.num_images_per_prompt, axis=0), (halves, 1, 1, 1))


def control_scale(given: float | Sequence[float] | FloatArray, request: Request) -> FloatArray:
    """Return one scale for each image, (N,) float32."""
    scale, count = as_floats("control_scale", given), request.prompt_count
    if scale.shape not in ((), (1,), (count,)):
        raise InputError(
            f"control_scale has shape {scale.shape} for {count} prompts; give one, or {count}",
            argument="control_scale",
        )
    return np.repeat(np.broadcast_to(scale, count), request.num_images_per_prompt)
