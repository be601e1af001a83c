"""The call of one request: its inputs, as the arguments of the pipeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from controlnext.errors import InputError, blames
from controlnext.families import Family
from controlnext.runtime.limits import RequestLimits
from controlnext.runtime.media.inline_images import decode_image, decode_text, encode_image, encode_text
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.random import random_seed
from controlnext.runtime.samplers.steps import GIVEN_STEPS
from controlnext.runtime.triton.tensors import read_inputs

PASSED_ON = (
    "prompt",
    "negative_prompt",
    "control_start",
    "control_end",
    "guidance_scale",
    "guidance_end",
    "cache_interval",
    "sampler",
    *GIVEN_STEPS,
)
"""Inputs that are arguments of the pipeline as they are."""


@dataclass(frozen=True)
class TritonCall:
    """A request's inputs, and the seed that was given or chosen."""

    inputs: Mapping[str, Any]
    seed: int

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], parameters: Collection[str] = ()) -> Self:
        """Return the call of a request; raise :class:`InputError` for what cannot be read."""
        inputs = read_inputs(tensors, parameters)
        return cls(inputs, inputs.get("seed", random_seed()))

    @property
    def partial_images(self) -> int:
        """The number of unfinished images that were asked for."""
        return self.inputs.get("partial_images", 0)

    @property
    def as_text(self) -> bool:
        """Whether the control images came as base64; then the responses have base64 too, as JSON needs it."""
        return any(_is_text(content) for content in self.inputs.get("control_image", ()))

    def check(self, limits: RequestLimits, decoupled: bool) -> None:
        """Raise :class:`InputError` if more is asked for than the model allows."""
        most = {"num_inference_steps": limits.max_steps, "num_images": limits.max_images}
        most |= {"width": limits.max_size, "height": limits.max_size, "partial_images": limits.max_steps}
        for name, largest in most.items():
            value, least = self.inputs.get(name), int(name != "partial_images")
            if value is not None and not least <= value <= largest:
                raise InputError(f"{name} is {value}; this model takes {least} to {largest}")
        for name in GIVEN_STEPS:
            if (count := len(self.inputs.get(name, ()))) > limits.max_steps:
                raise InputError(
                    f"{name} has {count} values; this model takes at most {limits.max_steps}", argument=name
                )
        if self.partial_images and not decoupled:
            raise InputError(
                f"partial_images is {self.partial_images}, but this model answers each request once; leave it"
                " out, or write the model as a decoupled one"
            )

    def arguments(self, family: Family, limits: RequestLimits) -> dict[str, Any]:
        """Return the arguments of the pipeline's call, its images decoded."""
        inputs = self.inputs
        given = {name: inputs[name] for name in (*PASSED_ON, "width", "height") if name in inputs}
        given["seed"] = self.seed
        if "num_inference_steps" in inputs or not inputs.keys() & set(GIVEN_STEPS):
            steps = inputs.get("num_inference_steps", min(family.default_steps, limits.max_steps))
            given["num_inference_steps"] = steps
        given["num_images_per_prompt"] = inputs.get("num_images", 1)
        if images := self._images(limits):
            for side, name in zip(images[0].size, ("width", "height"), strict=True):
                if name not in inputs and side > limits.max_size:
                    raise InputError(
                        f"{name} is missing and the image has {side} pixels; this model takes at most"
                        f" {limits.max_size}: give {name}, or scale the image down"
                    )
            given["control_image"] = one_or_all(images)
        if scales := inputs.get("control_scale"):
            given["control_scale"] = one_or_all(scales)
        return given

    def _images(self, limits: RequestLimits) -> list[Image.Image]:
        images = [
            decode_text("control_image", content.decode(), limits.max_pixels)
            if _is_text(content)
            else decode_image("control_image", content, limits.max_pixels)
            for content in self.inputs.get("control_image", ())
        ]
        if (name := self.inputs.get("preprocess")) is None:
            return images
        with blames("preprocess"):
            return [preprocess(name, image) for image in images]

    def encoded(self, images: list[Image.Image]) -> list[bytes]:
        """Return images as PNG files, or as those in base64."""
        files = [encode_image(image) for image in images]
        return [encode_text(file).encode() for file in files] if self.as_text else files


def _is_text(content: bytes) -> bool:
    """Return whether this is base64 or a data URL: no image file is of ASCII characters alone."""
    return content.isascii()
