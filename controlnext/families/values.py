"""Whether a value of a configuration is of the kind that is expected there.

Of JSON: a list serves for a tuple and a whole number for any number, but true and false are no numbers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from inspect import Parameter
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeGuard, Union, get_args, get_origin


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def alike(value: Any, default: Any) -> bool:
    """Return whether a value is of the kind of the default; a list, of as many numbers or other things alike."""
    if isinstance(default, bool) or default is None:
        return isinstance(value, type(default))
    if isinstance(default, int):
        return is_whole(value)
    if isinstance(default, float):
        return is_number(value)
    if isinstance(default, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(default)
        return same and all(map(alike, value, default))
    return isinstance(value, type(default))


def takes(kind: Any, value: Any) -> bool:
    """Return whether an argument that is annotated as ``kind`` takes a value; what is not annotated takes any.

    Annotations of tuples tell what is inside, not how many: ``tuple[int]`` stands for lists of any length.
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
        return is_whole(value) if kind is int else is_number(value)
    if kind in (bool, str):
        return isinstance(value, kind)
    return kind in (Any, Parameter.empty) or not isinstance(kind, type) or isinstance(value, kind)


def in_words(kind: Any) -> str:
    """What :func:`takes` takes: ``"a whole number or a list"``."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, get_args(kind))))
    kind = get_origin(kind) or kind
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


_WORDS: Mapping[Any, str] = MappingProxyType(
    {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a word",
        tuple: "a list",
        list: "a list",
        NoneType: "null",
    }
)


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """For a message that refuses a name: ``"; did you mean prediction_type?"``, or nothing."""
    near = difflib.get_close_matches(str(given), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
