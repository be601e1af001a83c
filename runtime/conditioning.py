"""Embeddings: the denoiser's text inputs."""

from __future__ import annotations

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.loras.store import ChosenLoras
from controlnext.runtime.prompts import Embeddings, TextEncoders, denoiser_width
from controlnext.runtime.request import Request, texts
from controlnext.types import FloatArray

_HIDDEN = "encoder_hidden_states"


class Conditioner:
    """Makes the denoiser's text inputs as diffusers' ``encode_prompt`` and ``check_inputs`` do."""

    def __init__(self, bundle: Bundle) -> None:
        self._encode = TextEncoders(bundle)
        self._width = denoiser_width(bundle, _HIDDEN)
        self._pooled = bundle.family.pooled_input
        self._pooled_width = denoiser_width(bundle, self._pooled) if self._pooled else None
        self._zeros = bool(bundle.manifest.options.get("force_zeros_for_empty_prompt", False))

    def __call__(
        self, request: Request, guided: bool, loras: ChosenLoras | None = None
    ) -> dict[str, FloatArray]:
        """Return the inputs by name, one row for each image; ``guided``: the negative prompts' rows first.

        ``loras``: those of the text encoders too.
        """
        names = ("prompt_embeds", "pooled_prompt_embeds")
        positive = self._embeddings(request, *names, texts(request.prompt, 1), loras)
        parts = [self._negative(request, positive, loras), positive] if guided else [positive]
        count = request.num_images_per_prompt
        inputs = {_HIDDEN: np.concatenate([np.repeat(part.hidden, count, axis=0) for part in parts])}
        pooled = [np.repeat(part.pooled, count, axis=0) for part in parts if part.pooled is not None]
        return {**inputs, self._pooled: np.concatenate(pooled)} if pooled else inputs

    def _negative(self, request: Request, positive: Embeddings, loras: ChosenLoras | None) -> Embeddings:
        names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        if self._zeros and request.negative_prompt is None and request.negative_prompt_embeds is None:
            return positive.zeros()
        prompts = texts(request.negative_prompt, len(positive.hidden))
        made = self._embeddings(request, *names, prompts, loras)
        for name, one, other in zip(names, made, positive, strict=True):
            if one is not None and other is not None and one.shape != other.shape:
                raise InputError(
                    f"{name} has shape {one.shape}, but the prompt's {other.shape}; they must agree",
                    argument=name,
                )
        return made

    def _embeddings(
        self, request: Request, name: str, pooled_name: str, prompts: list[str], loras: ChosenLoras | None
    ) -> Embeddings:
        given, given_pooled = getattr(request, name), getattr(request, pooled_name)
        if given is None:
            hidden, pooled = self._encode(prompts, loras)
        else:
            hidden, pooled = _checked(name, given, ("batch", "tokens", self._width)), None
        if self._pooled_width is None:
            if given_pooled is not None:
                raise InputError(
                    f"{pooled_name} is not supported by this model; remove `{pooled_name}`",
                    argument=pooled_name,
                )
            return Embeddings(hidden, None)
        if given_pooled is not None:
            pooled = _checked(pooled_name, given_pooled, (len(hidden), self._pooled_width))
        if pooled is None:
            raise InputError(
                f"{name} was given without {pooled_name}; this model needs both", argument=pooled_name
            )
        return Embeddings(hidden, pooled)


def _checked(name: str, array: FloatArray, expected: tuple[int | str, ...]) -> FloatArray:
    sizes = zip(array.shape, expected, strict=False)
    if array.ndim != len(expected) or not array.size or any(b != a for a, b in sizes if isinstance(b, int)):
        raise InputError(
            f"{name} has shape {array.shape}, expected ({', '.join(map(str, expected))})", argument=name
        )
    return array
