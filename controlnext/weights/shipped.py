"""The shipped folder of each family: a diffusers folder without weights, so that everything loads offline.

``configs/<family>/`` has the configuration of every network, the tokenizers' settings, the scheduler and
``single_file.json``: for each network the prefix of its tensors in a single-file checkpoint and the
:mod:`~controlnext.weights.original` layout of their names. CLIP's vocabulary is in ``configs/clip/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError
from controlnext.registry import Family, Network
from controlnext.weights.lazy import LazyTensor, first_line
from controlnext.weights.networks import complete_config, public
from controlnext.weights.original import LAYOUTS, Layout
from controlnext.weights.tokenizers import shipped_clip_tokenizer

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


def shipped_folder(family: Family) -> Path:
    return Path(__file__).parent / "configs" / family.name


def shipped_config(family: Family, network: Network) -> dict[str, Any]:
    """The full-size network's configuration."""
    return complete_config(network, read_json(shipped_folder(family) / network.folder / "config.json"))


def shipped_tokenizer(family: Family, network: Network, config: Mapping[str, Any]) -> str:
    """Content of the ``tokenizer.json`` for a text encoder of this configuration."""
    folder = shipped_folder(family) / network.tokenizer
    return shipped_clip_tokenizer(folder, config["max_position_embeddings"], config["vocab_size"])


def shipped_scheduler(family: Family) -> dict[str, Any]:
    return read_json(shipped_folder(family) / SCHEDULER)


def pipeline_options(family: Family, index: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the shipped ``model_index.json`` lists, with the values of a base's ``index``."""
    shipped = public(read_json(shipped_folder(family) / INDEX))
    return {key: index.get(key, value) for key, value in shipped.items() if key != "_class_name"}


def original_layout(family: Family, name: str, config: Mapping[str, Any]) -> Layout:
    """The original names of the tensors of one of the family's networks."""
    return partial(LAYOUTS[_single_file(family, name)["layout"]], config)


def section(family: Family, name: str, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of one network in a single-file checkpoint, without their prefix."""
    prefix = _single_file(family, name)["prefix"]
    return {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}


def _single_file(family: Family, name: str) -> dict[str, str]:
    entry: dict[str, str] = read_json(shipped_folder(family) / "single_file.json")[name]
    return entry


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises :class:`CheckpointError` where the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; get the folder again") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no readable JSON: {first_line(error)}; get the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no configuration; get the file again")
    return content
