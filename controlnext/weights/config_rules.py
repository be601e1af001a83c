"""Rules for keys of configurations: what a key's values are, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controlnext.families.values import is_integer


@dataclass(frozen=True)
class Rule:
    """The treatment of a key: all of its values are ``supported`` or ``harmless``, or only those that
    ``accepts`` admits; ``why``: what uses the key, why it is harmless, or what other values would ask for."""

    kind: Literal["supported", "harmless", "limited"]
    why: str
    accepts: Callable[[Any], bool] = lambda _value: True
    accepted: str = ""


Rules = Mapping[str, Rule]


def harmless(why: str) -> Rule:
    """Return the rule for a key that changes no number here, with the reason."""
    return Rule("harmless", why)


def only(*values: Any, why: str) -> Rule:
    """Return the rule for a key that takes only these values, which mean the same to the graph; null counts
    as the library's default."""
    words = ", ".join("null" if value is None else str(value) for value in values)

    def accepts(value: Any) -> bool:
        # in Python 1 == True
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)

    return Rule("limited", why, accepts, words)


def blocks(*names: str) -> Rule:
    return Rule(
        "limited",
        "other blocks take inputs that the graph does not have, or were never compared with PyTorch",
        lambda value: all(name in names for name in value),
        ", ".join(names),
    )


def keys(rule: Rule, *names: str) -> Rules:
    """Return the same ``rule`` for every one of ``names``."""
    return dict.fromkeys(names, rule)


def alone(value: Any) -> Any:
    """Return the number that a list has in every place; everything else as it is.

    diffusers takes ``[64, 64]`` for a size, and a list with the width of each block, where one number says
    the same.
    """
    same = isinstance(value, list | tuple) and value and all(one == value[0] for one in value)
    return value[0] if same and is_integer(value[0]) else value


LISTED = frozenset({"UNet2DConditionModel", "UNetSpatioTemporalConditionModel"})
"""The classes whose ``sample_size`` and ``cross_attention_dim`` may be lists of one number."""


def with_numbers(cls: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a network of class ``cls`` with numbers for lists of one number
    (:func:`alone`)."""
    listed = {"sample_size", "cross_attention_dim"} if cls in LISTED else ()
    return {key: alone(value) if key in listed else value for key, value in config.items()}


TRACED = Rule("supported", "built into the network that is traced")
RUNTIME = Rule("supported", "read from the manifest by the runtime")
TRAINING = harmless("acts in training alone")
