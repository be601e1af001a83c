"""Conversion of a manifest of an earlier schema to the current one."""

from __future__ import annotations

from typing import Any

from controlnext.bundle.manifest import SCHEMA
from controlnext.errors import BundleError
from controlnext.types import Precision


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Convert ``content`` to the current :data:`SCHEMA`.

    In schema 1 a graph's ``quantization`` was called ``int8``; ``compute`` was "" if nothing was quantized.
    """
    graphs = content.get("graphs")
    if content["schema"] == 1 and isinstance(graphs, dict):
        content = {**content, "graphs": {name: _upgrade_graph(graph) for name, graph in graphs.items()}}
    return {**content, "schema": SCHEMA}


def _upgrade_graph(graph: Any) -> Any:
    if not isinstance(graph, dict):
        return graph
    upgraded = {"quantization" if key == "int8" else key: value for key, value in graph.items()}
    return upgraded | {"compute": graph.get("compute") or None}


def check_precisions(content: dict[str, Any]) -> None:
    """Raise :class:`BundleError` for an unknown precision: msgspec's error does not list the accepted
    ones."""
    graphs = content.get("graphs")
    named = {f"graphs.{name}.": graph for name, graph in graphs.items()} if isinstance(graphs, dict) else {}
    for prefix, entries in {"": content, **named}.items():
        for key in ("precision", "compute"):
            value = entries.get(key) if isinstance(entries, dict) else None
            if isinstance(value, str) and value not in [*Precision]:
                raise BundleError(f"{prefix}{key} is {value!r}; accepted: {', '.join(Precision)}")
