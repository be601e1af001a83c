"""The shipped directory of each family: a diffusers directory without weights, so that everything loads
offline.

``configs/<family>/`` has the configuration of every network, the tokenizers' settings, the scheduler and
``single_file.json``: for each network the :mod:`~controlnext.weights.original` layout of its tensors' names,
and their prefixes in a single-file checkpoint, each with its replacement. CLIP's vocabulary is in
``configs/clip/``; the vocabulary of a tokenizer without a directory is not shipped.

A family without such a directory loads only from diffusers directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError
from controlnext.families import Family, Network
from controlnext.families.values import alike
from controlnext.weights.json_files import INDEX, read_json
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import complete_config
from controlnext.weights.original import LAYOUTS, Layout
from controlnext.weights.tokenizers import shipped_clip_tokenizer

PREPROCESSOR = "feature_extractor/preprocessor_config.json"
SCHEDULER = "scheduler/scheduler_config.json"


def shipped_directory(family: Family) -> Path:
    """Return the family's shipped directory. Raises :class:`CheckpointError` if it has none."""
    directory = Path(__file__).parent / "configs" / family.name
    if not directory.is_dir():
        raise CheckpointError(
            f"no configurations of {family.name} are shipped, which random weights, single-file checkpoints"
            " and original tensor names need; give diffusers directories and files with diffusers' tensor"
            " names"
        )
    return directory


def shipped_config(family: Family, network: Network) -> dict[str, Any]:
    """Return the full-size network's configuration, complete."""
    return complete_config(network, read_json(shipped_directory(family) / network.folder / "config.json"))


def shipped_tokenizer(family: Family, network: Network, config: Mapping[str, Any]) -> str | None:
    """Return the content of ``tokenizer.json`` for a text encoder of this configuration; None if it is not
    shipped."""
    directory = shipped_directory(family) / network.tokenizer
    return shipped_clip_tokenizer(directory, network, config) if directory.is_dir() else None


def read_options(family: Family, directory: Path) -> dict[str, Any]:
    """Read the values of the family's checkpoint options from a diffusers directory."""
    names = (INDEX, PREPROCESSOR) if family.checkpoint_options else ()
    files = [directory / name for name in names if (directory / name).is_file()]
    given = {key: (value, file) for file in files for key, value in read_json(file).items()}
    for key, default in family.checkpoint_options.items():
        value, file = given.get(key, (default, directory))
        if not alike(value, default):
            raise CheckpointError(
                f"{directory.name}: its {file.name} has {key}={value!r}, which is not a value of this option"
                f" (accepted: one like {default!r}); correct the file, or get the base again"
            )
    return {key: given[key][0] if key in given else d for key, d in family.checkpoint_options.items()}


def original_layout(family: Family, name: str, config: Mapping[str, Any]) -> Layout:
    """Return the layout of the original tensor names of one of the family's networks.

    For a family without a shipped directory the layout raises :class:`CheckpointError` when it is called.
    """

    @cache
    def convert() -> Layout:
        return partial(LAYOUTS[_single_file(family)[name]["layout"]], config)

    return lambda today: convert()(today)


def section(family: Family, name: str, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors of one network in a single-file checkpoint, without their prefix."""
    return {
        inside + key.removeprefix(prefix): tensor
        for prefix, inside in original_prefixes(family, name).items()
        for key, tensor in found.items()
        if key.startswith(prefix)
    }


def original_prefixes(family: Family, name: str) -> dict[str, str]:
    """Return the prefixes of one network's tensors in a single-file checkpoint, each with what stands in its
    place in the names of its :func:`original_layout`."""
    prefixes: dict[str, str] = _single_file(family)[name]["prefixes"]
    return prefixes


def _single_file(family: Family) -> dict[str, Any]:
    return read_json(shipped_directory(family) / "single_file.json")
