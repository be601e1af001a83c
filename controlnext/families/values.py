"""Checks of the type of configuration values.

The values come from JSON: a list counts as a tuple, an integer as a number; true and false are not numbers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeGuard, Union, get_args, get_origin

from controlnext.errors import InputError


def is_integer(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_flags(**given: object) -> None:
    """Raise :class:`InputError` for the first argument that is neither True nor False."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; it must be True or False", argument=name)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class Numbers:
    """The numbers that a configuration value may be: integers or all, from ``least`` to ``most``."""

    kind: type[int] | type[float]
    least: float
    most: float

    def takes(self, value: Any) -> bool:
        """Return whether a value is one of them."""
        of_kind = is_integer(value) if self.kind is int else is_number(value)
        return of_kind and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{in_words(self.kind)} from {self.least:g} to {self.most:g}"


def alike(value: Any, default: Any) -> bool:
    """Return whether a value has the type of the default; a list also its length and its entries' types."""
    if isinstance(default, bool) or default is None:
        return isinstance(value, type(default))
    if isinstance(default, int):
        return is_integer(value)
    if isinstance(default, float):
        return is_number(value)
    if isinstance(default, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(default)
        return same and all(map(alike, value, default))
    return isinstance(value, type(default))


def takes(kind: Any, value: Any) -> bool:
    """Return whether an argument annotated as ``kind`` takes a value; without annotation it takes any.

    Annotations of tuples give the type of the entries, not their number: ``tuple[int]`` accepts any length.
    """
    inside = [one for one in get_args(kind) if one is not ...]
    if get_origin(kind) in (Union, UnionType):
        return any(takes(one, value) for one in inside)
    if (get_origin(kind) or kind) in (tuple, list):
        return isinstance(value, list | tuple) and all(
            not inside or any(takes(one, entry) for one in inside) for entry in value
        )
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        return is_integer(value) if kind is int else is_number(value)
    if kind in (bool, str):
        return isinstance(value, kind)
    return kind in (Any, Parameter.empty) or not isinstance(kind, type) or isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Describe the values that :func:`takes` accepts: ``"an integer or a list"``."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, get_args(kind))))
    kind = get_origin(kind) or kind
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


_WORDS: Mapping[Any, str] = MappingProxyType(
    {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        tuple: "a list",
        list: "a list",
        NoneType: "null",
    }
)


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return a hint for messages that reject a name, ``"; did you mean prediction_type?"``, or nothing."""
    near = nearest(str(given), known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(given: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return the names that may be meant by one that is not known: two at most that have all its words, or
    whose words are among its own; else one that is written alike, by ``cutoff``."""
    names, words = list(known), _words(given)
    longer = [name for name in names if words and words <= _words(name)]
    shorter = [name for name in names if _words(name) and _words(name) < words]
    if whole := longer or shorter:
        return difflib.get_close_matches(given, whole, 2, cutoff=0)
    return difflib.get_close_matches(given, names, 1, cutoff)


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[_-]+", name.lower()) if word}
