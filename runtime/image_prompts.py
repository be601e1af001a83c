"""Image prompts: the images of a request for the IP-Adapters of a bundle, as inputs of its denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from controlnext.bundle.manifest import ImagePrompt
from controlnext.errors import InputError, begins_with
from controlnext.image_input import ImageReader
from controlnext.image_prompts import IMAGE_ENCODER, KINDS, SCALE, numbered_adapters
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.request import Request, as_floats
from controlnext.types import FloatArray

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pixels, with which diffusers normalizes every image prompt."""


@dataclass(frozen=True)
class PromptInputs:
    """The denoiser's inputs ``feed`` for image prompts, and the sizes in them: of each adapter the number of
    images, by its symbol."""

    feed: dict[str, FloatArray] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class ImagePrompts:
    """Makes the denoiser's inputs for image prompts as diffusers' ``prepare_ip_adapter_image_embeds`` does.

    A request without image prompts has those of no image, at scale 0, which add zeros.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._adapters = bundle.manifest.graphs[bundle.family.denoiser].adapters
        self._nothing: FloatArray | None = None

    def __len__(self) -> int:
        return len(self._adapters)

    def __call__(self, request: Request, guided: bool) -> PromptInputs:
        """Return the inputs, one row for each image; ``guided``: the rows of the unconditional half first.

        Raises :class:`InputError` for arguments that do not fit the adapters or the prompts.
        """
        if not self._adapters:
            _check_no_prompts(request)
            return PromptInputs()
        scales = self._scales(request)
        feed, sizes = {}, {}
        for number, (names, adapter) in enumerate(
            zip(numbered_adapters(len(self)), self._adapters, strict=True)
        ):
            halves = self._halves(request, number, adapter, guided)
            if halves is None:
                scales[:, number] = 0
                halves = [np.zeros((1, 1, *adapter.embedding), np.float32)] * (2 if guided else 1)
            feed[names.embeds] = np.concatenate([_rows(half, request) for half in halves])
            sizes[names.images] = halves[0].shape[1]
        rows = np.repeat(scales, request.num_images_per_prompt, axis=0)
        feed[SCALE] = np.concatenate([rows, rows]) if guided else rows
        return PromptInputs(feed, sizes)

    def _scales(self, request: Request) -> FloatArray:
        """Return the scale of each prompt and adapter."""
        given, name, count = request.ip_adapter_scale, "ip_adapter_scale", request.prompt_count
        several = isinstance(given, (list, tuple)) or (isinstance(given, np.ndarray) and given.ndim > 0)
        each = self._each(name, given) if several else [given] * len(self)
        columns = []
        for one in each:
            scale = as_floats(name, one)
            if scale.shape not in ((), (1,), (count,)):
                raise InputError(
                    f"{name} has shape {scale.shape} for {count} prompts; give one, or {count}", argument=name
                )
            columns.append(np.broadcast_to(scale, count))
        return np.stack(columns, axis=1)

    def _each(self, name: str, given: Any) -> list[Any]:
        """Return one value for each adapter."""
        if len(self) == 1:
            alone = isinstance(given, (list, tuple)) and len(given) == 1
            return [given[0] if alone else given]
        if not isinstance(given, (list, tuple)) or len(given) != len(self):
            raise InputError(
                f"this bundle has {len(self)} IP-Adapters; {name} must be a list of {len(self)} entries",
                argument=name,
            )
        return list(given)

    def _halves(
        self, request: Request, number: int, adapter: ImagePrompt, guided: bool
    ) -> list[FloatArray] | None:
        """Return what an adapter reads (1 or prompts, images, ...) in each half; None if it gets no image."""
        if request.ip_adapter_image_embeds is not None:
            given = self._each("ip_adapter_image_embeds", request.ip_adapter_image_embeds)[number]
            return None if given is None else _given(given, request, adapter, guided)
        if request.ip_adapter_image is None:
            return None
        given = self._each("ip_adapter_image", request.ip_adapter_image)[number]
        return None if given is None else self._encoded(_images(given, request), adapter, guided)

    def _encoded(self, prompts: list[list[Any]], adapter: ImagePrompt, guided: bool) -> list[FloatArray]:
        kind = KINDS[adapter.kind]
        (pixels,) = self._bundle.manifest.graphs[IMAGE_ENCODER].inputs
        size = int(pixels.shape[-1])
        reader = ImageReader("ip_adapter_image")
        with begins_with("ip_adapter_image"):
            arrays = [prompt_pixels(reader.read_rgb(one), size) for images in prompts for one in images]
        engine = self._bundle.engine(IMAGE_ENCODER)

        def run(array: FloatArray) -> FloatArray:
            return engine.run({pixels.name: array})[kind.output]

        rows = np.concatenate([run(array) for array in arrays])
        own = rows.reshape(len(prompts), -1, *rows.shape[1:])
        if not guided:
            return [own]
        if not kind.encodes_zeros:
            return [np.zeros_like(own), own]
        if self._nothing is None:
            self._nothing = run(np.zeros_like(arrays[0]))
        return [np.broadcast_to(self._nothing, own.shape), own]


def _check_no_prompts(request: Request) -> None:
    """Raise :class:`InputError` for image prompts, or a scale of them, that no IP-Adapter would read."""
    scale = "ip_adapter_scale"
    given = {
        "ip_adapter_image": request.ip_adapter_image is not None,
        "ip_adapter_image_embeds": request.ip_adapter_image_embeds is not None,
        scale: (as_floats(scale, request.ip_adapter_scale) != 1).any(),
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"{name} was given, but the bundle has no IP-Adapter; export it with `ip_adapter`, or remove"
                f" `{name}`",
                argument=name,
            )


def _images(given: Any, request: Request) -> list[list[Any]]:
    """Return the images of each prompt, or of all prompts: one, several that act together, or a list of
    lists, one for each prompt."""
    several = given if isinstance(given, (list, tuple)) else [given]
    if not several:
        raise InputError("ip_adapter_image has no image; give one, or remove it", argument="ip_adapter_image")
    if not any(isinstance(one, (list, tuple)) for one in several):
        return [list(several)]
    count = request.prompt_count
    lists = [one if isinstance(one, (list, tuple)) else [one] for one in several]
    if len(lists) != count:
        raise InputError(
            f"ip_adapter_image has images of {len(lists)} prompts for {count} prompts; give a list for each,"
            " or one image for all",
            argument="ip_adapter_image",
        )
    if len({len(one) for one in lists}) > 1 or not lists[0]:
        raise InputError(
            f"ip_adapter_image has {', '.join(str(len(one)) for one in lists)} images for the prompts; give"
            " each as many",
            argument="ip_adapter_image",
        )
    return [list(one) for one in lists]


def _given(given: Any, request: Request, adapter: ImagePrompt, guided: bool) -> list[FloatArray]:
    """Return given embeddings by halves; as in diffusers the unconditional half comes first."""
    name = "ip_adapter_image_embeds"
    array, halves = as_floats(name, given), 2 if guided else 1
    accepted = {halves, halves * request.prompt_count}
    if (
        array.ndim != 2 + len(adapter.embedding)
        or list(array.shape[2:]) != adapter.embedding
        or len(array) not in accepted
        or not array.shape[1]
    ):
        rows = " or ".join(str(count) for count in sorted(accepted))
        shape = ", ".join([rows, "images", *map(str, adapter.embedding)])
        raise InputError(
            f"{name} has shape {array.shape}, expected ({shape})"
            f"{', the unconditional half first' if guided else ''}",
            argument=name,
        )
    return np.split(array, halves)


def _rows(half: FloatArray, request: Request) -> FloatArray:
    each = np.broadcast_to(half, (request.prompt_count, *half.shape[1:]))
    return np.repeat(each, request.num_images_per_prompt, axis=0)


def prompt_pixels(image: Image.Image, size: int) -> FloatArray:
    """Return CLIP's ``pixel_values`` (1, 3, size, size) float32 of an RGB image.

    The shorter side is resized to ``size`` with an antialiased cubic filter and the middle is taken, as
    transformers' ``CLIPImageProcessor`` does for diffusers.
    """
    short, long = sorted(image.size)
    resized = int(size * long / short)
    wide, high = (size, resized) if image.width <= image.height else (resized, size)
    left, top = (wide - size) // 2, (high - size) // 2
    small = image.resize((wide, high), Image.Resampling.BICUBIC)
    levels = np.asarray(small.crop((left, top, left + size, top + size)), np.float32).transpose(2, 0, 1)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (MEAN, STD))
    return ((levels / np.float32(255) - mean) / std)[None]
