"""Scheduler options: which values each sampler accepts, and how a configuration is read.

Reading follows diffusers' `Class.from_config`: a missing key takes the target class's default (not the
default of the class that wrote the configuration), a key listed under `_use_default_values` counts as
missing, and a key that the target class does not have is ignored. An option that diffusers' class has and
that is not supported here raises an error; it is never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families.values import is_integer, is_number


@dataclass(frozen=True)
class Option:
    """One key of a scheduler configuration: its default in diffusers, a check, and the check in words."""

    default: Any
    accepts: Callable[[Any], bool]
    accepted: str


OptionTable = Mapping[str, Option]


def flag(default: bool = False) -> Option:
    """Return an option that is true or false; null counts as false, as in diffusers."""
    return Option(default, lambda value: value is None or isinstance(value, bool), "true, false")


def off() -> Option:
    """Return an option for a diffusers switch that is not supported here: it must be off."""
    return Option(False, lambda value: value is None or value is False, "false")


def unset() -> Option:
    """Return an option for a diffusers value that is not supported here: it must be null."""
    return Option(None, lambda value: value is None, "null")


def choice(default: str | None, *others: str | None) -> Option:
    """Return an option that takes one of a few strings, including the default."""
    words = (default, *others)
    return Option(default, lambda value: value in words, ", ".join("null" if w is None else w for w in words))


LARGEST = 1_000_000
"""The largest integer of a scheduler configuration: tables of that many entries are made."""


def integer(default: int, lowest: int, highest: int = LARGEST) -> Option:
    """Return an option that takes integers from `lowest` to `highest`."""
    return Option(
        default,
        lambda value: is_integer(value) and lowest <= value <= highest,
        f"integers from {lowest} to {highest}",
    )


def number(
    default: float | None, lowest: float = -math.inf, highest: float = math.inf, *, above: bool = False
) -> Option:
    """Return an option for numbers in [lowest, highest] (`above`: > `lowest`), and null if that is the
    default."""

    def accepts(value: Any) -> bool:
        if value is None:
            return default is None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (value > lowest if above else value >= lowest) and value <= highest

    words = f"numbers {'above' if above else 'from'} {lowest:g} to {highest:g}"
    return Option(default, accepts, words + (", null" if default is None else ""))


def trained_betas() -> Option:
    """Return an option that takes a list of betas, or null to compute them from beta_schedule."""

    def accepts(value: Any) -> bool:
        if value is None:
            return True
        table = value.tolist() if isinstance(value, np.ndarray) else value
        return isinstance(table, list | tuple) and len(table) > 0 and all(map(is_number, table))

    return Option(None, accepts, "null, a list of finite numbers")


def step_numbers() -> Option:
    """Return an option that takes a list of step indices."""

    def accepts(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(map(is_integer, value))

    return Option((), accepts, "a list of step indices")


_OF_A_RUN = "run with another sampler, or export again with `scheduler` {key}=VALUE, an accepted value"


def read_options(
    sampler: str, known: OptionTable, config: Mapping[str, Any], remedy: str = _OF_A_RUN
) -> Mapping[str, Any]:
    """Read and check the values of all `known` options in one configuration.

    Args:
        sampler: name for the messages.
        known: the options of the target class.
        config: scheduler configuration as in scheduler_config.json.
        remedy: how to fix a value that is not supported, for the message; ``{key}`` stands for the option.

    Raises:
        InputError: the configuration is not a mapping, or an option has a value that is not supported.
    """
    if not isinstance(config, Mapping):
        raise InputError(
            f"the scheduler configuration must be a mapping of options, not {type(config).__name__}"
        )
    lacking = config.get("_use_default_values") or ()
    values = {}
    for key, option in known.items():
        value = config[key] if key in config and key not in lacking else option.default
        if not option.accepts(value):
            raise InputError(
                f"sampler '{sampler}' does not support the scheduler option {key}={value!r} (accepted: "
                f"{option.accepted}); {remedy.format(key=key)}",
                argument="sampler",
            )
        values[key] = value
    return MappingProxyType(values)
