"""Names in LoRA files: of the two matrices of a layer, and of the settings of their strength."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.errors import CheckpointError, InputError

METADATA = "lora_adapter_metadata"
"""The entry of a file's metadata in which diffusers' trainers write peft's settings, by names like
``"unet.lora_alpha"``."""
STRENGTH = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""peft's settings of the strength of a layer; the others are about training, or name modules to import."""

# layer, then "down" or "A" for the first of its two matrices, "up" or "B" for the second, in every format
_MATRIX = re.compile(r"(.+)[._]lora(?:_linear_layer)?[._](?:(down|A)|up|B)\.weight")

KOHYA: Mapping[str, str] = MappingProxyType(
    {
        "lora_unet_": "unet",
        "lora_te_": "text_encoder",
        "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2",
    }
)
"""The networks of the prefixes in files of kohya's sd-scripts."""
# of the attention layers of diffusers' files of 2023
_RENAMED = (
    (re.compile(r"_processor_"), "_"),
    (re.compile(r"self_attn_to_(q|k|v|out)$"), r"self_attn_\1_proj"),
    (re.compile(r"(attn\d?)_to_out$"), r"\1_to_out_0"),
    (re.compile(r"^text_model_"), ""),
)


def matched(
    shapes: Mapping[str, tuple[int, ...]], what: str, describe: Callable[[], str]
) -> dict[str, re.Match[str]]:
    """Return a match for each matrix among the tensors of these ``shapes``, by its name: the first group is
    the layer, the second is empty for the second matrix of a layer.

    Raises :class:`CheckpointError` for the file ``what``, which looks as ``describe`` says, if it is not a
    plain LoRA.
    """
    matrix = {name: _MATRIX.fullmatch(name) for name, shape in shapes.items() if len(shape) >= 2}
    matches = {name: match for name, match in matrix.items() if match}
    layers = Counter(match[1] for match in matches.values())
    problems = {
        "without their pair": [name for name, match in matches.items() if layers[match[1]] != 2],
        "other tensors": [n for n in shapes if n not in matches and n.removesuffix(".alpha") not in layers],
    }
    if any(problems.values()) or not matches:
        found = "; ".join(filter(None, (f"{len(matches)} low-rank matrices", listing(problems))))
        raise CheckpointError(
            f"{what} is not a plain LoRA ({describe()}): {found}; accepted: pairs of them, with or without"
            " alpha, not DoRA, LoHa or LoKr"
        )
    return matches


def network_of(name: str) -> tuple[str, str]:
    """Split the name of a layer in a file, in any format, into network and :func:`layer_key`."""
    for prefix, network in KOHYA.items():
        if name.startswith(prefix):
            return network, layer_key(name.removeprefix(prefix))
    network, _, inside = name.partition(".")
    return network, layer_key(inside)


def layer_key(name: str) -> str:
    """Return the name of a layer in a form that is the same in all formats, with underscores for dots."""
    key = name.replace(".", "_")
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key


def split_scale(given: str) -> tuple[str, float]:
    """Split ``PATH[:SCALE]`` into path and scale, 1 by default.

    A path may contain colons: the text after the last one is a scale only if it is a number. Raises
    :class:`InputError` for one that is not a finite number.
    """
    path, colon, last = given.rpartition(":")
    if not colon or Path(given).expanduser().exists():
        return given, 1.0
    try:
        scale = float(last)
    except ValueError:
        if not Path(path).expanduser().exists():
            return given, 1.0
        scale = math.nan
    if not math.isfinite(scale):
        raise InputError(
            f"`lora` {given}: {last!r} is not a finite number; give PATH or PATH:SCALE", argument="lora"
        )
    return path, scale


def listing(problems: Mapping[str, Iterable[str]], shown: int = 3) -> str:
    """Return ``"2 missing (a, b); 7 unexpected (c, d, e ...)"`` for lists of names by problem."""
    parts = []
    for problem, names in ((key, list(value)) for key, value in problems.items()):
        if names:
            more = " ..." if len(names) > shown else ""
            parts.append(f"{len(names)} {problem} ({', '.join(names[:shown])}{more})")
    return "; ".join(parts)
