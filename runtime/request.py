"""What a user asks of the pipeline, and the checks that need no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError

OUTPUT_TYPES = ("pil", "np", "latent")

_ARRAYS = (
    "control_scale",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)

FloatArray = NDArray[np.float32]
Prompt = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of a pipeline call. None means the default that is given in brackets.

    Args:
        prompt: text, or a list of texts, one a picture.
        negative_prompt: text for all prompts or a list of as many (what the model was trained with for a
            missing one: zeros, or the embedding of the empty text).
        control_image: a picture, or one for each prompt: PIL images of any mode, or arrays (height, width, 3)
            of uint8 or of floats in [0, 1]. Resized where its size is not ``width`` x ``height``.
        control_scale: strength of the control, or one for each prompt; 0 switches it off.
        num_inference_steps: steps of the sampler, from 1 on (the family's default).
        guidance_scale: classifier-free guidance; none at 1 or less (the family's default).
        height, width: size of the result in pixels, multiples of 8 (those of ``latents`` if they are given,
            else of the control picture).
        seed: start of the random numbers, as in ``torch.Generator("cpu").manual_seed(seed)``.
        sampler: name of a sampler of the family (the family's default).
        num_images_per_prompt: pictures for each prompt.
        latents: (N, C, height/8, width/8) noise of unit variance instead of what the seed gives.
        prompt_embeds, negative_prompt_embeds: (N, tokens, width) instead of the prompts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (N, width), for families that take them.
            These and ``latents`` may be whatever NumPy makes an array of; here they are float32.
        control_start, control_end: the part of the run, of 0 to 1, in which the control acts.
        output_type: "pil", "np" or "latent".

    Raises:
        InputError: a value that no model could take.
    """

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    control_image: Any = None
    control_scale: float | FloatArray = 1.0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    sampler: str | None = None
    num_images_per_prompt: int = 1
    latents: FloatArray | None = None
    prompt_embeds: FloatArray | None = None
    negative_prompt_embeds: FloatArray | None = None
    pooled_prompt_embeds: FloatArray | None = None
    negative_pooled_prompt_embeds: FloatArray | None = None
    control_start: float = 0.0
    control_end: float = 1.0
    output_type: str = "pil"

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_floats(name, getattr(self, name)))
        self._check_numbers()
        self._check_prompts()
        if self.output_type not in OUTPUT_TYPES:
            raise InputError(f"unknown output_type {self.output_type!r}; accepted: {', '.join(OUTPUT_TYPES)}")

    def _check_numbers(self) -> None:
        if self.latents is not None and self.latents.ndim != 4:
            raise InputError(
                f"latents have shape {self.latents.shape}, expected (batch, channels, height/8, width/8)"
            )
        if not is_whole(self.num_images_per_prompt) or self.num_images_per_prompt < 1:
            raise InputError(
                f"num_images_per_prompt is {self.num_images_per_prompt!r}; give a whole number from 1 on"
            )
        if self.guidance_scale is not None and not _is_finite(self.guidance_scale):
            raise InputError(f"guidance_scale is {self.guidance_scale!r}; give a finite number")
        start, end = self.control_start, self.control_end
        if not (_is_finite(start, end) and 0 <= start < end <= 1):
            raise InputError(
                f"control_start is {start!r} and control_end {end!r};"
                " give 0 <= control_start < control_end <= 1"
            )

    def _check_prompts(self) -> None:
        """The rules of diffusers' ``check_inputs`` that need no model."""
        for text in ("prompt", "negative_prompt"):
            embeds = f"{text}_embeds"
            if getattr(self, text) is not None:
                _check_texts(text, getattr(self, text))
                if getattr(self, embeds) is not None:
                    raise InputError(f"both {text} and {embeds} were given; give one of the two")
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("no prompt was given; give prompt or prompt_embeds")
        if isinstance(self.negative_prompt, Sequence) and not isinstance(self.negative_prompt, str):
            count = self.prompt_count
            if len(self.negative_prompt) != count:
                raise InputError(
                    f"negative_prompt has {len(self.negative_prompt)} texts for a batch of {count}; give one,"
                    f" or {count}"
                )

    @property
    def prompt_count(self) -> int:
        """How many prompts, or rows of embeddings, were given."""
        if self.prompt_embeds is not None:
            return math.prod(self.prompt_embeds.shape[:1])
        return len(texts(self.prompt, 1))


def texts(prompt: Prompt | None, count: int) -> list[str]:
    """The prompt as a list; a single one ``count`` times, a missing one as the empty text."""
    return [prompt or ""] * count if prompt is None or isinstance(prompt, str) else list(prompt)


def as_floats(name: str, values: object) -> FloatArray:
    """``values`` as float32; raises :class:`InputError` where they are no numbers or not finite."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no array of numbers: {error}") from error
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise InputError(f"{name} has {wrong} values of {array.size} that are NaN or infinite")
    return array


def _check_texts(name: str, prompt: object) -> None:
    several = isinstance(prompt, (list, tuple)) and prompt and all(isinstance(text, str) for text in prompt)
    if not isinstance(prompt, str) and not several:
        raise InputError(f"{name} is {prompt!r}; give a text or a list of texts")


def is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_finite(*values: object) -> bool:
    return all(isinstance(v, (int, float, np.number)) and math.isfinite(v) for v in values)
