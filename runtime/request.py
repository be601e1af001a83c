"""The arguments of the pipelines, and the checks that need no model."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.image_prompt_request import ImagePromptArguments
from controlnext.runtime.samplers.steps import GIVEN_STEPS, read_steps
from controlnext.runtime.start_request import StartArguments
from controlnext.runtime.step_end import StepEnd as StepEnd  # that annotations are resolved here too
from controlnext.runtime.step_end import StepEndArguments
from controlnext.types import FloatArray

OUTPUT_TYPES = ("pil", "np", "latent")

MOST_IMAGES = 10_000
"""More images of one call do not fit into any memory."""
_LARGEST = sys.float_info.max
MOST_NOISE = 10
"""The largest deviation of the noise that is added to a clip's image; it was trained with less than 1."""

Prompt = str | Sequence[str]
Scale = float | Sequence[float] | FloatArray
Scales = Mapping[str, float]
"""LoRAs, each with its scale, by the names that :meth:`~controlnext.runtime.Pipeline.add_lora` gave them."""


@dataclass(frozen=True, eq=False)
class CommonRequest:
    """The arguments that every pipeline takes; :class:`~controlnext.runtime.ImagePipeline` describes them.

    Raises:
        InputError: a value that no model accepts.
    """

    _: KW_ONLY
    control_scale: Scale | Sequence[Scale] = 1.0
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | FloatArray | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    sampler: str | None = None
    latents: FloatArray | None = None
    control_start: float = 0.0
    control_end: float = 1.0
    guidance_end: float = 1.0
    output_type: str = "pil"
    vae_tiling: bool = False
    cache_interval: int = 1

    arrays: ClassVar[tuple[str, ...]] = ("latents",)
    latent_shape: ClassVar[tuple[str, ...]] = ()
    default_chunk: ClassVar[int] = 1

    def __post_init__(self) -> None:
        read_steps(**self.steps)
        for name in self.arrays:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_floats(name, getattr(self, name)))
        if self.latents is not None and self.latents.ndim != len(self.latent_shape):
            raise InputError(
                f"latents have shape {self.latents.shape}, expected ({', '.join(self.latent_shape)})",
                argument="latents",
            )
        start, end = self.control_start, self.control_end
        if not (is_finite(start) and 0 <= start < 1):
            raise InputError(
                f"control_start is {start!r}; it must be a number from 0 to less than 1, the end of the run",
                argument="control_start",
            )
        if not (is_finite(end) and start < end <= 1):
            raise InputError(
                f"control_end is {end!r}; it must be a number above `control_start`, which is {start:g}, and"
                " at most 1, the end of the run",
                argument="control_end",
            )
        if not (is_finite(self.guidance_end) and 0 <= self.guidance_end <= 1):
            raise InputError(
                f"guidance_end is {self.guidance_end!r}; it must be a number from 0 to 1, the end of the run",
                argument="guidance_end",
            )
        if self.output_type not in OUTPUT_TYPES:
            raise InputError(
                f"unknown output_type {self.output_type!r}; accepted: {', '.join(OUTPUT_TYPES)}",
                argument="output_type",
            )
        check_least("cache_interval", self.cache_interval, 1)

    @property
    def steps(self) -> dict[str, Any]:
        """The arguments that say which steps to take; at most one of them is not None."""
        return {name: getattr(self, name, None) for name in ("num_inference_steps", *GIVEN_STEPS)}

    @property
    def chunk(self) -> int:
        """The number of images decoded at a time: the decoder needs more memory than the denoiser."""
        return self.default_chunk


@dataclass(frozen=True, eq=False)
class Request(StepEndArguments, ImagePromptArguments, StartArguments, CommonRequest):
    """The arguments of a call of :class:`~controlnext.runtime.ImagePipeline`, which describes them."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    control_image: Any = None
    _: KW_ONLY
    timesteps: Sequence[int] | FloatArray | None = None
    guidance_scale: float | None = None
    num_images_per_prompt: int = 1
    lora: Scales | Sequence[Scales | None] | None = None
    prompt_embeds: FloatArray | None = None
    negative_prompt_embeds: FloatArray | None = None
    pooled_prompt_embeds: FloatArray | None = None
    negative_pooled_prompt_embeds: FloatArray | None = None

    arrays = (
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    latent_shape = ("batch", "channels", "height/8", "width/8")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.num_images_per_prompt) or not 1 <= self.num_images_per_prompt <= MOST_IMAGES:
            raise InputError(
                f"num_images_per_prompt is {self.num_images_per_prompt!r}; it must be an integer from 1 to"
                f" {MOST_IMAGES}",
                argument="num_images_per_prompt",
            )
        if self.guidance_scale is not None and not is_finite(self.guidance_scale):
            raise InputError(
                f"guidance_scale is {self.guidance_scale!r}; it must be a finite number",
                argument="guidance_scale",
            )
        self._check_prompts()
        check_loras(self.lora)
        self.check_start(self.output_type, self.latents)
        self.check_image_prompts()
        self.check_step_end()

    def _check_prompts(self) -> None:
        """Apply the rules of diffusers' ``check_inputs`` that need no model."""
        for text in ("prompt", "negative_prompt"):
            embeds = f"{text}_embeds"
            if getattr(self, text) is not None:
                _check_texts(text, getattr(self, text))
                if getattr(self, embeds) is not None:
                    raise InputError(
                        f"both {text} and {embeds} were given; remove one of the two", argument=text
                    )
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("no prompt was given; set `prompt` or `prompt_embeds`", argument="prompt")
        if isinstance(self.negative_prompt, Sequence) and not isinstance(self.negative_prompt, str):
            count = self.prompt_count
            if len(self.negative_prompt) != count:
                raise InputError(
                    f"negative_prompt has {len(self.negative_prompt)} texts for a batch of {count}; give one"
                    f" or {count}",
                    argument="negative_prompt",
                )

    @property
    def prompt_count(self) -> int:
        """The number of prompts, or of rows of embeddings."""
        if self.prompt_embeds is not None:
            return math.prod(self.prompt_embeds.shape[:1])
        return len(texts(self.prompt, 1))


@dataclass(frozen=True, eq=False)
class VideoRequest(StepEndArguments, CommonRequest):
    """The arguments of a call of :class:`~controlnext.runtime.VideoPipeline`, which describes them."""

    image: Any = None
    control_images: Any = None
    _: KW_ONLY
    num_frames: int | None = None
    frames_per_batch: int = 14
    overlap: int = 4
    min_guidance_scale: float = 1.0
    max_guidance_scale: float | None = None
    noise_aug_strength: float = 0.02
    decode_chunk_size: int | None = None

    latent_shape = ("1", "frames", "channels", "height/8", "width/8")
    default_chunk = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_frames", "frames_per_batch", "overlap", "decode_chunk_size"):
            value, lowest = getattr(self, name), 0 if name == "overlap" else 1
            if not self._left(name) and (not is_integer(value) or value < lowest):
                accepted = f"an integer of at least {lowest}" if name == "overlap" else "a positive integer"
                raise InputError(f"{name} is {value!r}; it must be {accepted}", argument=name)
        for name in ("min_guidance_scale", "max_guidance_scale", "noise_aug_strength"):
            value = getattr(self, name)
            if not self._left(name) and not is_finite(value):
                raise InputError(f"{name} is {value!r}; it must be a finite number", argument=name)
        if not 0 <= self.noise_aug_strength <= MOST_NOISE:
            raise InputError(
                f"noise_aug_strength is {self.noise_aug_strength!r}; it must be from 0 to {MOST_NOISE}: the"
                " image's own values go from -1 to 1",
                argument="noise_aug_strength",
            )
        if self.image is None:
            raise InputError("no reference image was given; set `image`", argument="image")
        self.check_step_end()

    def _left(self, name: str) -> bool:
        """Whether an argument that may be None is None."""
        return getattr(self, name) is None and getattr(type(self), name) is None

    @property
    def chunk(self) -> int:
        """The number of frames decoded at a time."""
        return self.frames_per_batch if self.decode_chunk_size is None else self.decode_chunk_size


def texts(prompt: Prompt | None, count: int) -> list[str]:
    """Return the prompts as a list: a single one ``count`` times, a missing one as empty texts."""
    return [prompt or ""] * count if prompt is None or isinstance(prompt, str) else list(prompt)


def as_floats(name: str, values: object) -> FloatArray:
    """Return ``values`` as float32; raise :class:`InputError` if they are not finite numbers."""
    try:
        given = np.asarray(values)
        # NumPy would take a text for the number that it spells, None for NaN and drop an imaginary part
        if given.dtype.kind in "bcmMSU" or (given.dtype.kind == "O" and None in given.ravel().tolist()):
            raise InputError(f"{name} is {reprlib.repr(values)}; give numbers", argument=name)
        with np.errstate(over="ignore"):
            # what float32 cannot hold is told below
            array = given.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers: {error}", argument=name) from error
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong and array.size == 1:
        raise InputError(f"{name} is {given.item()}; it must be a finite number of float32", argument=name)
    if wrong:
        raise InputError(f"{name} has {wrong} values of {array.size} that are NaN or infinite", argument=name)
    return array


def _check_texts(name: str, prompt: object) -> None:
    several = isinstance(prompt, (list, tuple)) and prompt and all(isinstance(text, str) for text in prompt)
    if not isinstance(prompt, str) and not several:
        # an image in second place, as other pipelines take it
        hint = "; the control image is `control_image`" if hasattr(prompt, "size") else ""
        raise InputError(
            f"{name} is {reprlib.repr(prompt)}; it must be a text or a list of texts{hint}", argument=name
        )


def check_loras(given: object) -> None:
    """Raise :class:`InputError` unless ``given`` is None, scales by names, or a list of these."""
    entries = given if isinstance(given, (list, tuple)) else [given]
    for entry in entries:
        if entry is None:
            continue
        named = isinstance(entry, Mapping) and all(isinstance(name, str) for name in entry)
        if not (named and isinstance(entry, Mapping) and is_finite(*entry.values())):
            raise InputError(
                f"`lora` is {given!r}; give the scale of each LoRA by its name, such as {{'style': 0.8}}, or"
                " a list of these, one for each prompt",
                argument="lora",
            )


def is_integer(value: object) -> bool:
    """Return whether ``value`` is an integer; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_finite(*values: object) -> bool:
    """Return whether all ``values`` are finite numbers; True and False are not."""
    return all(
        isinstance(v, (int, float, np.integer, np.floating))
        and not isinstance(v, bool)
        and abs(float(v) if isinstance(v, np.generic) else v) <= _LARGEST
        for v in values
    )


def check_least(name: str, value: object, least: int) -> None:
    """Raise :class:`InputError` unless an argument is an integer of at least ``least``."""
    if not is_integer(value) or value < least:  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}", argument=name)
