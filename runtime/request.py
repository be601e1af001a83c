"""What a user asks of the pipelines, and the checks that need no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from controlnext.errors import InputError
from controlnext.types import FloatArray

OUTPUT_TYPES = ("pil", "np", "latent")

Prompt = str | Sequence[str]
Scale = float | Sequence[float] | FloatArray


@dataclass(frozen=True, eq=False)
class CommonRequest:
    """The arguments that every pipeline takes. None means the default that is given in brackets.

    Args:
        control_scale: strength of the control; 0 switches it off.
        num_inference_steps: steps of the sampler, from 1 on (the family's default).
        height, width: size of the result in pixels, multiples of 8, for some families of 16 (those of
            ``latents`` if they are given, else of the first control picture, rounded down).
        seed: start of the random numbers, as in ``torch.Generator("cpu").manual_seed(seed)``.
        sampler: name of a sampler of the family (the family's default).
        latents: noise of unit variance instead of what the seed gives; whatever NumPy makes an array of.
        control_start, control_end: the part of the run, of 0 to 1, in which the control acts.
        output_type: "pil", "np" or "latent".
        vae_tiling: decode in overlapping tiles, for large pictures: that takes less memory, but colours may
            shift from tile to tile. Not for clips.

    Raises:
        InputError: a value that no model could take.
    """

    _: KW_ONLY
    control_scale: Scale | Sequence[Scale] = 1.0
    num_inference_steps: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    sampler: str | None = None
    latents: FloatArray | None = None
    control_start: float = 0.0
    control_end: float = 1.0
    output_type: str = "pil"
    vae_tiling: bool = False

    arrays: ClassVar[tuple[str, ...]] = ("latents",)
    latent_shape: ClassVar[tuple[str, ...]] = ()
    default_chunk: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in self.arrays:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_floats(name, getattr(self, name)))
        if self.latents is not None and self.latents.ndim != len(self.latent_shape):
            raise InputError(
                f"latents have shape {self.latents.shape}, expected ({', '.join(self.latent_shape)})",
                argument="latents",
            )
        start, end = self.control_start, self.control_end
        if not (is_finite(start, end) and 0 <= start < end <= 1):
            raise InputError(
                f"control_start is {start!r} and control_end {end!r};"
                " give 0 <= control_start < control_end <= 1",
                argument="control_end" if is_finite(start) and 0 <= start < 1 else "control_start",
            )
        if self.output_type not in OUTPUT_TYPES:
            raise InputError(
                f"unknown output_type {self.output_type!r}; accepted: {', '.join(OUTPUT_TYPES)}",
                argument="output_type",
            )

    @property
    def chunk(self) -> int:
        """How many pictures are decoded at a time: the decoder needs more memory than the denoiser."""
        return self.default_chunk


@dataclass(frozen=True, eq=False)
class Request(CommonRequest):
    """The arguments of an image pipeline's call, beside those of :class:`CommonRequest`.

    Where a bundle has several controls, ``control_image`` is a list with what one takes for each of them, and
    ``control_scale`` a number for all or a list likewise.

    Args:
        prompt: text, or a list of texts, one a picture.
        negative_prompt: text for all prompts or a list of as many (what the model was trained with for a
            missing one: zeros, or the embedding of the empty text).
        control_image: a picture, or one for each prompt: PIL images of any mode, or arrays (height, width, 3)
            of uint8 or of floats in [0, 1], or others that
            :class:`~controlnext.image_input.ImageReader` takes. Resized where its size is not
            ``width`` x ``height``.
        control_scale: one, or one for each prompt.
        guidance_scale: classifier-free guidance; none at 1 or less (the family's default).
        num_images_per_prompt: pictures for each prompt.
        latents: (N, C, height/8, width/8).
        prompt_embeds, negative_prompt_embeds: (N, tokens, width) instead of the prompts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (N, width), for families that take them.
    """

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    control_image: Any = None
    _: KW_ONLY
    guidance_scale: float | None = None
    num_images_per_prompt: int = 1
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
        if not is_whole(self.num_images_per_prompt) or self.num_images_per_prompt < 1:
            raise InputError(
                f"num_images_per_prompt is {self.num_images_per_prompt!r}; give a whole number from 1 on",
                argument="num_images_per_prompt",
            )
        if self.guidance_scale is not None and not is_finite(self.guidance_scale):
            raise InputError(
                f"guidance_scale is {self.guidance_scale!r}; give a finite number", argument="guidance_scale"
            )
        self._check_prompts()

    def _check_prompts(self) -> None:
        """The rules of diffusers' ``check_inputs`` that need no model."""
        for text in ("prompt", "negative_prompt"):
            embeds = f"{text}_embeds"
            if getattr(self, text) is not None:
                _check_texts(text, getattr(self, text))
                if getattr(self, embeds) is not None:
                    raise InputError(
                        f"both {text} and {embeds} were given; give one of the two", argument=text
                    )
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("no prompt was given; give prompt or prompt_embeds", argument="prompt")
        if isinstance(self.negative_prompt, Sequence) and not isinstance(self.negative_prompt, str):
            count = self.prompt_count
            if len(self.negative_prompt) != count:
                raise InputError(
                    f"negative_prompt has {len(self.negative_prompt)} texts for a batch of {count}; give one,"
                    f" or {count}",
                    argument="negative_prompt",
                )

    @property
    def prompt_count(self) -> int:
        """How many prompts, or rows of embeddings, were given."""
        if self.prompt_embeds is not None:
            return math.prod(self.prompt_embeds.shape[:1])
        return len(texts(self.prompt, 1))


@dataclass(frozen=True, eq=False)
class VideoRequest(CommonRequest):
    """The arguments of a video pipeline's call, beside those of :class:`CommonRequest`.

    Where a bundle has several controls, ``control_images`` is a list of clips, one for each of them, and
    ``control_scale`` a number for all or a list of numbers.

    Args:
        image: the reference picture, which the clip shows moving; as a control picture.
        control_images: the control's clip: a sequence of pictures or an array (frames, height, width, 3).
            Anything with a length and an index will do: frames are read when they are needed, so that a long
            clip need not be in memory.
        num_frames: frames of the result (as many as the control has).
        frames_per_batch, overlap: a longer clip is denoised in windows of so many frames that share so many.
        min_guidance_scale, max_guidance_scale: guidance of the first and the last frame, linear between; none
            where the second is less than 1.
        noise_aug_strength: noise that is added to the reference picture.
        decode_chunk_size: frames that are decoded at a time (those of a window); they see one another, so
            that it is part of the result.
        latents: (1, frames, C, height/8, width/8).
    """

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
            if not self._left(name) and (not is_whole(value) or value < lowest):
                raise InputError(f"{name} is {value!r}; give a whole number from {lowest} on", argument=name)
        for name in ("min_guidance_scale", "max_guidance_scale", "noise_aug_strength"):
            value = getattr(self, name)
            if not self._left(name) and not is_finite(value):
                raise InputError(f"{name} is {value!r}; give a finite number", argument=name)
        if self.image is None:
            raise InputError("no reference picture was given; give image", argument="image")

    def _left(self, name: str) -> bool:
        """Whether an argument that may be None is."""
        return getattr(self, name) is None and getattr(type(self), name) is None

    @property
    def chunk(self) -> int:
        return self.frames_per_batch if self.decode_chunk_size is None else self.decode_chunk_size


def texts(prompt: Prompt | None, count: int) -> list[str]:
    """The prompt as a list; a single one ``count`` times, a missing one as the empty text."""
    return [prompt or ""] * count if prompt is None or isinstance(prompt, str) else list(prompt)


def as_floats(name: str, values: object) -> FloatArray:
    """``values`` as float32; raises :class:`InputError` where they are no numbers or not finite."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no array of numbers: {error}", argument=name) from error
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise InputError(f"{name} has {wrong} values of {array.size} that are NaN or infinite", argument=name)
    return array


def _check_texts(name: str, prompt: object) -> None:
    several = isinstance(prompt, (list, tuple)) and prompt and all(isinstance(text, str) for text in prompt)
    if not isinstance(prompt, str) and not several:
        raise InputError(f"{name} is {prompt!r}; give a text or a list of texts", argument=name)


def is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_finite(*values: object) -> bool:
    return all(isinstance(v, (int, float, np.number)) and math.isfinite(v) for v in values)
