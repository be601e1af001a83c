"""Prompts to embeddings: the tokenizers and text encoders of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.tokens import PromptTokenizer, Tokens, prompt_tokenizer
from controlnext.types import FloatArray

logger = logging.getLogger(__name__)


_HIDDEN, _POOLED = "prompt_embeds", "text_embeds"


class Embeddings(NamedTuple):
    """``hidden`` (N, tokens, width) float32; ``pooled`` (N, width) float32, or None where there is none."""

    hidden: FloatArray
    pooled: FloatArray | None

    def zeros(self) -> Embeddings:
        """Zeros of the same shapes."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Embeddings(np.zeros_like(self.hidden), pooled)


class TextEncoders:
    """The text encoders of a bundle, each with its tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._family = bundle, bundle.family
        self._tokenizers: dict[str, PromptTokenizer] = {}

    def __call__(self, prompts: Sequence[str]) -> Embeddings:
        """Embeddings of ``prompts`` by every text encoder, as diffusers' ``encode_prompt`` makes them.

        Hidden states are concatenated on the last axis; the pooled embeddings likewise, or that of the last
        encoder that has one counts, as the family has it. The tokens of a family's sequence encoder follow on
        the token axis. What does not fit is cut off, and a warning says what.

        Raises :class:`~controlnext.errors.InputError` where the bundle lacks a text encoder.
        """
        self._require_encoders()
        folders = [*self._family.prompt_encoders, self._family.sequence_encoder]
        folders = [folder for folder in folders if folder in self._bundle.manifest.graphs]
        tokens = {folder: self._tokenizer(folder)(prompts) for folder in folders}
        _warn_of_the_rest(tokens)
        outputs = {folder: self._run(folder, tokens[folder]) for folder in folders}
        following = outputs.pop(self._family.sequence_encoder, None)
        hidden = np.concatenate([output[_HIDDEN] for output in outputs.values()], axis=-1)
        pooled = [output[_POOLED] for output in outputs.values() if _POOLED in output]
        if not self._family.join_pooled:
            pooled = pooled[-1:]
        if self._family.sequence_encoder:
            hidden = self._followed(hidden, None if following is None else following[_HIDDEN])
        return Embeddings(hidden, np.concatenate(pooled, axis=-1) if pooled else None)

    def _require_encoders(self) -> None:
        needed = self._family.prompt_encoders
        missing = [folder for folder in needed if folder not in self._bundle.manifest.graphs]
        if missing:
            what = "text encoders" if len(missing) == len(needed) else f"{', '.join(missing)} to read prompts"
            raise InputError(
                f"this bundle has no {what}; give prompt_embeds and, with guidance, the negative ones, or"
                f" export a base that has {', '.join(needed)}"
            )

    def _run(self, folder: str, tokens: Sequence[Tokens]) -> dict[str, np.ndarray]:
        ids = np.array([prompt.encoding.ids for prompt in tokens], np.int64)
        return self._bundle.engine(folder).run({"input_ids": ids})

    def _followed(self, hidden: FloatArray, following: FloatArray | None) -> FloatArray:
        """``hidden`` at the denoiser's width, followed by the sequence encoder's tokens or zeros for them."""
        width = denoiser_width(self._bundle, "encoder_hidden_states")
        if following is None:
            folder = self._family.sequence_encoder
            (name,) = (graph.network for graph in self._family.graphs if graph.name == folder)
            following = np.zeros((len(hidden), self._family.networks[name].tokens, width), np.float32)
        padded = np.zeros((*hidden.shape[:2], width), np.float32)
        padded[..., : hidden.shape[-1]] = hidden[..., :width]
        return np.concatenate([padded, following], axis=1)

    def _tokenizer(self, folder: str) -> PromptTokenizer:
        if folder not in self._tokenizers:
            self._tokenizers[folder] = prompt_tokenizer(self._bundle.path, self._bundle.manifest, folder)
        return self._tokenizers[folder]


def denoiser_width(bundle: Bundle, name: str) -> int:
    """The size of the last axis of the denoiser's input ``name``."""
    inputs = bundle.manifest.graphs[bundle.family.denoiser].inputs
    (width,) = (tensor.shape[-1] for tensor in inputs if tensor.name == name)
    assert isinstance(width, int)
    return width


def _warn_of_the_rest(tokens: Mapping[str, Sequence[Tokens]]) -> None:
    """Text encoders of different lengths cut off different parts."""
    cut_off: dict[str, dict[str, None]] = {}
    for folder, rows in tokens.items():
        for prompt in rows:
            if prompt.cut_off:
                cut_off.setdefault(prompt.cut_off, {})[folder] = None
    for rest, folders in cut_off.items():
        logger.warning("a prompt is too long for %s; this part is left out: %s", ", ".join(folders), rest)
