"""Turn prompts into embeddings with the tokenizers and text encoders of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from controlnext.errors import InputError
from controlnext.families.graph_spec import SKIPPED
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.loras.store import ChosenLoras
from controlnext.runtime.tokens import PromptTokenizer, Tokens, prompt_tokenizer
from controlnext.types import FloatArray

logger = logging.getLogger(__name__)

_HIDDEN, _POOLED = "prompt_embeds", "text_embeds"


class Embeddings(NamedTuple):
    """The embeddings ``hidden`` (N, tokens, width) and ``pooled`` (N, width) or None, both float32."""

    hidden: FloatArray
    pooled: FloatArray | None

    def zeros(self) -> Embeddings:
        """Return zeros of the same shapes."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Embeddings(np.zeros_like(self.hidden), pooled)


class TextEncoders:
    """The text encoders of a bundle, each with its tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._family = bundle, bundle.family
        self._tokenizers: dict[str, PromptTokenizer] = {}

    def __call__(
        self, prompts: Sequence[str], loras: ChosenLoras | None = None, *, negative: bool = False
    ) -> Embeddings:
        """Return the embeddings of ``prompts`` by all text encoders, as diffusers' ``encode_prompt`` does.

        Hidden states are concatenated on the last axis. The family decides whether the pooled embeddings are
        concatenated too or the last encoder's is used. The tokens of a family's sequence encoder follow on
        the token axis. Prompts that are too long are truncated, and a warning names the part. ``loras``:
        those of each prompt. ``negative``: whether they are negative prompts, for which no layer of the text
        encoders is skipped.

        Raises :class:`~controlnext.errors.InputError` if the bundle lacks a text encoder.
        """
        self._require_encoders()
        graph_names = [*self._family.prompt_encoders, self._family.sequence_encoder]
        graph_names = [graph_name for graph_name in graph_names if graph_name in self._bundle.manifest.graphs]
        tokens = {graph_name: self._tokenizer(graph_name)(prompts) for graph_name in graph_names}
        _warn_of_truncation(tokens)
        outputs = {graph_name: self._run(graph_name, tokens[graph_name], loras) for graph_name in graph_names}
        following = outputs.pop(self._family.sequence_encoder, None)
        hidden = np.concatenate([_hidden(output, negative) for output in outputs.values()], axis=-1)
        pooled = [output[_POOLED] for output in outputs.values() if _POOLED in output]
        if not self._family.join_pooled:
            pooled = pooled[-1:]
        if self._family.sequence_encoder:
            hidden = self._followed(hidden, None if following is None else following[_HIDDEN])
        return Embeddings(hidden, np.concatenate(pooled, axis=-1) if pooled else None)

    def _require_encoders(self) -> None:
        needed = self._family.prompt_encoders
        missing = [graph_name for graph_name in needed if graph_name not in self._bundle.manifest.graphs]
        if missing:
            what = "text encoders" if len(missing) == len(needed) else f"{', '.join(missing)} to read prompts"
            raise InputError(
                f"this bundle has no {what}; give `prompt_embeds` and, with guidance,"
                " `negative_prompt_embeds`, or export a base that has "
                f"{', '.join(needed)}"
            )

    def _run(
        self, graph_name: str, tokens: Sequence[Tokens], loras: ChosenLoras | None
    ) -> dict[str, np.ndarray]:
        ids = np.array([prompt.encoding.ids for prompt in tokens], np.int64)
        inputs = loras.inputs(graph_name) if loras else {}
        return self._bundle.engine(graph_name).run({"input_ids": ids, **inputs})

    def _followed(self, hidden: FloatArray, following: FloatArray | None) -> FloatArray:
        """Return ``hidden`` padded to the denoiser's width, then the sequence encoder's tokens (or zeros)."""
        width = denoiser_width(self._bundle, "encoder_hidden_states")
        if following is None:
            graph_name = self._family.sequence_encoder
            (name,) = (graph.network for graph in self._family.graphs if graph.name == graph_name)
            following = np.zeros((len(hidden), self._family.networks[name].tokens, width), np.float32)
        padded = np.zeros((*hidden.shape[:2], width), np.float32)
        padded[..., : hidden.shape[-1]] = hidden[..., :width]
        return np.concatenate([padded, following], axis=1)

    def _tokenizer(self, graph_name: str) -> PromptTokenizer:
        if graph_name not in self._tokenizers:
            self._tokenizers[graph_name] = prompt_tokenizer(
                self._bundle.path, self._bundle.manifest, graph_name
            )
        return self._tokenizers[graph_name]


def _hidden(output: Mapping[str, FloatArray], negative: bool) -> FloatArray:
    """Return the hidden states among a text encoder's outputs; only negative prompts skip no layers."""
    return output[SKIPPED if SKIPPED in output and not negative else _HIDDEN]


def denoiser_width(bundle: Bundle, name: str) -> int:
    """Return the size of the last axis of the denoiser's input ``name``."""
    inputs = bundle.manifest.graphs[bundle.family.denoiser].inputs
    (width,) = (tensor.shape[-1] for tensor in inputs if tensor.name == name)
    assert isinstance(width, int)
    return width


def _warn_of_truncation(tokens: Mapping[str, Sequence[Tokens]]) -> None:
    """Log the truncated parts of prompts; text encoders of different lengths truncate different parts."""
    cut_off: dict[str, dict[str, None]] = {}
    for graph_name, rows in tokens.items():
        for prompt in rows:
            if prompt.cut_off:
                cut_off.setdefault(prompt.cut_off, {})[graph_name] = None
    for part, graph_names in cut_off.items():
        logger.warning("a prompt is too long for %s; this part is ignored: %s", ", ".join(graph_names), part)
