"""Textual inversions: words of their own, added to the tokenizers and to the text encoders' embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from controlnext.bundle.manifest import Source
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family
from controlnext.weights.base import Base
from controlnext.weights.lazy import LazyTensor, is_finite, not_finite, read_content
from controlnext.weights.weight_source import choose_weights, resolve, weight_files

log = logging.getLogger(__name__)

_STEMS = ("learned_embeds",)
_EMBEDDING = "embeddings.token_embedding.weight"
"""The end of its name: not all classes and releases of transformers have ``text_model`` before it."""
_BY_ENCODER = ("clip_l", "clip_g")
"""Keys of a file with vectors for both text encoders of SDXL, in the encoders' order."""
_WEBUI = "string_to_param"
"""The key under which web UIs save vectors; their trainers call the token ``*``, and the file by its name."""
_NAMELESS = ("*", "emb_params")
"""Names that stand for the file's own."""


def add_inversions(family: Family, base: Base, inversions: Sequence[str]) -> list[Source]:
    """Add textual inversions, each ``PATH[:TOKEN]``, to the tokenizers and text encoders of ``base``.

    ``PATH``: a file, a directory with ``learned_embeds.safetensors`` or ``.bin``, or a hub id; its vectors
    are (N, width) or (width,). ``TOKEN``: the word in prompts, by default the one that the file names, or the
    file's own name. As with diffusers, further vectors are the tokens ``TOKEN_1``, ``TOKEN_2``, ..., which
    a prompt's ``TOKEN`` stands for. A file for one text encoder is added to those of its width.

    Raises :class:`InputError` for a family whose pipeline has no textual inversions, and
    :class:`CheckpointError` for a file that is none, does not fit, or whose token is in the vocabulary.
    """
    if inversions and not (family.prompt_encoders and family.multi_vector_tokens):
        raise InputError(
            f"textual inversions are not supported by {family.name}: diffusers' {family.pipeline_class} has"
            " none; remove `textual_inversion`",
            argument="textual_inversion",
        )
    return [_add(family, base, *split_token(given)) for given in inversions]


def split_token(given: str) -> tuple[str, str]:
    """Split into path and token. A path may contain colons: one that exists is whole."""
    path, _, token = given.rpartition(":")
    if not path or Path(given).expanduser().exists() or "/" in token:
        return given, ""
    return path, token


def choose_inversion(names: Sequence[str]) -> list[str]:
    """Return the textual inversion among the files of a directory."""
    return choose_weights(names, _STEMS)


def _add(family: Family, base: Base, given: str, token: str) -> Source:
    weight_source = resolve(given, choose_inversion)
    (file,) = weight_files(weight_source.path, _STEMS, "textual inversion")
    named, found = _vectors(read_content(file), file)
    token = token or (file.stem if named in _NAMELESS else named)
    fitting = _fitting(family, base, found, weight_source.name)
    for name, vectors in fitting.items():
        _extend(family, base, name, token, vectors, weight_source.name)
    source = weight_source.source("textual inversion", file)
    detail = ", ".join(filter(None, (source.detail, f"token {token}")))
    return msgspec.structs.replace(source, detail=detail)


def _vectors(content: Any, file: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the token that a file names, and its vectors (N, width) by text encoder; ``""``: by width."""
    named: Any = file.stem
    found: Any = {}
    if isinstance(content, Tensor):
        found = {"": content}
    elif isinstance(content, Mapping) and isinstance(content.get(_WEBUI), Mapping):
        named, found = content.get("name"), {"": next(iter(content[_WEBUI].values()), None)}
    elif isinstance(content, Mapping) and content and content.keys() <= {*_BY_ENCODER}:
        found = dict(content)
    elif isinstance(content, Mapping) and len(content) == 1:
        ((named, vectors),) = content.items()
        found = {"": vectors}
    whole = {key: value for key, value in found.items() if _is_vectors(value)}
    if not whole or len(whole) != len(found):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else "no names"
        raise CheckpointError(
            f"{file} is not a textual inversion: it holds {keys}; accepted: one tensor by the token,"
            f" {' and '.join(_BY_ENCODER)}, or {_WEBUI} of a web UI"
        )
    for key, tensor in whole.items():
        if not is_finite(tensor):
            raise CheckpointError(not_finite(file.name, key or str(named)))
    name = str(named) if isinstance(named, str) and named else file.stem
    return name, {key: torch.atleast_2d(tensor.detach().float()) for key, tensor in whole.items()}


def _is_vectors(value: object) -> bool:
    return (
        isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (1, 2) and value.numel() > 0
    )


def _fitting(family: Family, base: Base, found: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return the vectors of each text encoder that gets some."""
    widths = {
        name: base.parts[name].config["hidden_size"] for name in family.prompt_encoders if name in base.parts
    }
    by_encoder = dict(zip(_BY_ENCODER, family.prompt_encoders, strict=False))
    fitting: dict[str, Tensor] = {}
    for key, vectors in found.items():
        names = [by_encoder.get(key, "")] if key else [*widths]
        fitting |= {name: vectors for name in names if widths.get(name) == vectors.shape[1]}
    if len(fitting) < len(found):
        have = ", ".join(f"{name} {width}" for name, width in widths.items()) or "there is none"
        given = ", ".join(f"{key or 'its vectors'} {vectors.shape[1]}" for key, vectors in found.items())
        raise CheckpointError(
            f"{what} does not fit the text encoders of {family.name}: width of {given}, of the encoders:"
            f" {have}; give a textual inversion that was trained for this base"
        )
    return fitting


def _extend(family: Family, base: Base, name: str, token: str, vectors: Tensor, what: str) -> None:
    """Add the vectors of one text encoder; the tokenizer gives their tokens the next ids."""
    part, folder = base.parts[name], family.networks[name].tokenizer
    tokenizer = Tokenizer.from_str(base.tokenizers[folder])
    tokens = [token, *(f"{token}_{number}" for number in range(1, len(vectors)))]
    known = tokenizer.get_vocab()
    if taken := [one for one in (*tokens, f"{token}_1") if one in known]:
        raise CheckpointError(
            f"{what}: the token {taken[0]} is in the vocabulary of {folder}; give another: PATH:TOKEN"
        )
    tokenizer.add_tokens(tokens)
    (embedding,) = (one for one in part.tensors if one.endswith(_EMBEDDING))
    rows = max(known.values()) + 1
    part.tensors = part.tensors | {embedding: _longer(part.tensors[embedding], rows, vectors)}
    part.config = part.config | {"vocab_size": rows + len(vectors)}
    base.tokenizers[folder] = tokenizer.to_str()
    base.added_tokens.setdefault(folder, []).extend(tokens)
    log.info("%s: %s is %d vectors of %s", what, token, len(vectors), name)


def _longer(table: LazyTensor, rows: int, vectors: Tensor) -> LazyTensor:
    """Return an embedding of ``rows`` rows of ``table``, then ``vectors``.

    A table may have more rows than the vocabulary has tokens: no id asks for them.
    """
    shape = (rows + len(vectors), table.shape[1])
    return LazyTensor(shape, lambda: torch.cat([table.read().float()[:rows], vectors]))
