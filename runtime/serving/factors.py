"""Factors in the fields of requests: strengths, and scales of LoRAs by name."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import BeforeValidator, Field

MOST_LORAS = 16
"""Most LoRAs of a request; their ranks have to fit into the bundle's room besides."""


def _decoded(value: Any) -> Any:
    """Return an object that a form has as its JSON."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise ValueError('give a JSON object such as {"style": 0.8}') from None


Strength = Annotated[float, Field(ge=-100, le=100)]
"""A factor; far larger ones make numbers overflow."""
LoraScales = Annotated[
    dict[str, Strength], Field(max_length=MOST_LORAS), BeforeValidator(_decoded, json_schema_input_type=Any)
]
