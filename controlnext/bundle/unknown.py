"""Entries of a manifest that this version does not know: a newer one wrote them, or they are misspelled."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from controlnext.bundle.manifest import Manifest
from controlnext.families import Family
from controlnext.families.values import did_you_mean
from controlnext.tensor_spec import control_names

logger = logging.getLogger(__name__)

_NAMED = 5
"""The number of unknown entries that the warning names."""


def without_unknown(content: Mapping[str, Any], family: Family, path: object) -> dict[str, Any]:
    """Return a manifest's content without entries that neither its classes nor the family know.

    Logs a warning that names them; ``path``: of the manifest.
    """
    found: list[str] = []
    known = {
        "graphs": [spec.name for spec in family.graphs],
        "configs": [*family.known_networks, *control_names(content.get("configs"))],
        "options": list(family.checkpoint_options),
    }
    kept = {
        key: _of_registry(key, value, known[key], found) if key in known else value
        for key, value in content.items()
    }
    pruned: dict[str, Any] = _of_class(kept, Manifest, "", found)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        logger.warning(
            "%s has entries that this version does not know and ignores: %s%s",
            path,
            ", ".join(found[:_NAMED]),
            more,
        )
    return pruned


def _of_registry(key: str, value: Any, known: Collection[str], found: list[str]) -> Any:
    if not isinstance(value, dict):
        return value
    found += [_shown(f"{key}.{name}", name, known) for name in value if name not in known]
    return {name: entry for name, entry in value.items() if name in known}


def _of_class(value: Any, kind: Any, place: str, found: list[str]) -> Any:
    """Return ``value`` without keys that the msgspec class in ``kind`` does not have, at any depth."""
    inside = get_args(kind)
    if get_origin(kind) is Annotated:
        return _of_class(value, inside[0], place, found)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return _of_struct(value, kind, place, found)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _of_class(entry, inside[1], f"{place}{name}.", found) for name, entry in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        return [_of_class(entry, inside[0], place, found) for entry in value]
    for one in inside if get_origin(kind) not in (dict, list, tuple) else ():
        value = _of_class(value, one, place, found)
    return value


@cache
def _types(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields: a manifest has hundreds of entries of the same few classes."""
    return get_type_hints(kind, include_extras=True)


def _of_struct(value: dict[str, Any], kind: type, place: str, found: list[str]) -> dict[str, Any]:
    types = _types(kind)
    found += [_shown(f"{place}{key}", key, types) for key in value if key not in types]
    return {
        key: _of_class(entry, types[key], f"{place}{key}.", found)
        for key, entry in value.items()
        if key in types
    }


def _shown(place: str, name: str, known: Collection[str]) -> str:
    hint = did_you_mean(name, known).removeprefix("; ")
    return ascii(place[:100])[1:-1] + (f" ({hint})" if hint else "")
