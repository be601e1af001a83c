"""Checks of ``model_index.json`` of a diffusers directory: its pipeline, components and options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError
from controlnext.families import Family
from controlnext.families.graph_spec import CLASS
from controlnext.hub_names import name_of
from controlnext.weights.base_keys import COMPONENTS, MODEL_INDEX
from controlnext.weights.config_check import check_unknown, check_values
from controlnext.weights.json_files import INDEX, read_json
from controlnext.weights.shipped import SCHEDULER


def check_index(family: Family, directory: Path, parts: Collection[str]) -> None:
    """Raise for a base that was saved for another pipeline, or with components or options that the family
    does not have.

    ``parts``: the :func:`part_names` of the whole family, including networks that are left out. A directory
    without the file is accepted: networks and scheduler have their own configurations. Raises
    :class:`CheckpointError`.
    """
    if not (directory / INDEX).is_file():
        return
    index = read_json(directory / INDEX)
    what = f"{name_of(directory)}: its {INDEX}"
    _check_pipeline(family, what, index)
    components = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    scheduler = read_json(directory / SCHEDULER).get(CLASS)
    for name, (_, cls) in components.items():
        # the scheduler's own file is checked separately
        if cls is not None and not name.startswith("_") and (name, cls) != ("scheduler", scheduler):
            _check_component(family, what, name, cls, parts)
    options = {key: value for key, value in index.items() if key not in components}
    known = {**MODEL_INDEX, **family.checkpoint_options}
    check_unknown(what, options, known, f"the {family.pipeline_class}")
    check_values(what, options, MODEL_INDEX)


def _check_pipeline(family: Family, what: str, index: Mapping[str, Any]) -> None:
    name = index.get(CLASS)
    cls = name[-1] if isinstance(name, list) and name else name  # a custom pipeline's file and class
    accepted = (family.pipeline_class, *family.pipelines)
    if cls is not None and cls not in accepted:
        raise CheckpointError(
            f"{what} names the pipeline {cls}, which does not fit {family.title}; accepted:"
            f" {', '.join(accepted)}"
        )


def _check_component(family: Family, what: str, name: str, cls: str, parts: Collection[str]) -> None:
    if name == "scheduler":
        accepted: tuple[str, ...] = family.schedulers
    elif name in family.networks:
        accepted = family.networks[name].classes
    elif name in COMPONENTS or name in parts:
        return
    else:
        raise CheckpointError(
            f"{what} has the component {name} ({cls}), which {family.title} does not have; give a base of"
            f" {family.name}"
        )
    if cls not in accepted:
        raise CheckpointError(f"{what} has {cls} as its {name}; accepted: {', '.join(accepted)}")


def part_names(family: Family) -> set[str]:
    """Return the names of a family's networks and tokenizers in the index."""
    return {*family.networks, *(network.tokenizer for network in family.networks.values())}
