"""Prompts to embeddings: the tokenizers and text encoders of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

_HIDDEN, _POOLED = "prompt_embeds", "text_embeds"


class Embeddings(NamedTuple):
    """``hidden`` (N, tokens, width) float32; ``pooled`` (N, width) float32, or None where there is none."""

    hidden: NDArray[np.float32]
    pooled: NDArray[np.float32] | None

    def zeros(self) -> Embeddings:
        """Zeros of the same shapes."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Embeddings(np.zeros_like(self.hidden), pooled)


class TextEncoders:
    """The text encoders of a bundle, each with its tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._folders = [name for name in bundle.family.prompt_encoders if name in bundle.manifest.graphs]
        self._tokenizers: dict[str, Tokenizer] = {}

    def __call__(self, prompts: Sequence[str]) -> Embeddings:
        """Embeddings of ``prompts`` by every text encoder, as diffusers' ``encode_prompt`` makes them.

        Hidden states are concatenated on the last axis; the pooled embedding is that of the last encoder that
        has one. What does not fit is cut off, and a warning says what. Raises
        :class:`~controlnext.errors.InputError` where the bundle has no text encoders.
        """
        if not self._folders:
            raise InputError(
                "this bundle has no text encoders; give prompt_embeds and, with guidance, the negative ones"
            )
        hidden, pooled, cut_off = [], None, set()
        for folder in self._folders:
            encodings = self._tokenizer(folder).encode_batch(list(prompts))
            cut_off |= {_rest(text, e) for text, e in zip(prompts, encodings, strict=True) if e.overflowing}
            ids = np.array([encoding.ids for encoding in encodings], np.int64)
            outputs = self._bundle.engine(folder).run({"input_ids": ids})
            hidden.append(outputs[_HIDDEN])
            pooled = outputs.get(_POOLED, pooled)
        for text in sorted(cut_off):
            logger.warning("a prompt is longer than the text encoders read; this part is left out: %s", text)
        return Embeddings(np.concatenate(hidden, axis=-1), pooled)

    def _tokenizer(self, folder: str) -> Tokenizer:
        """The tokenizer of the text encoder ``folder``; its file says to what length it cuts and pads."""
        # loading the library takes as long as the rest of the runtime, and not every bundle needs it
        from tokenizers import Tokenizer

        if folder not in self._tokenizers:
            network = self._bundle.family.networks[self._bundle.manifest.graphs[folder].network]
            path = self._bundle.file(f"{network.tokenizer}/tokenizer.json")
            self._tokenizers[folder] = Tokenizer.from_file(str(path))
        return self._tokenizers[folder]


def _rest(text: str, encoding: Encoding) -> str:
    """The part of ``text`` behind the last token that was kept."""
    tokens = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return text[max(end for (_, end), special in tokens if not special) :].strip()
