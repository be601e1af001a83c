"""Tables of measurements on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from controlnext.bundle.manifest import ParityRow
from controlnext.cli.console import print_table
from controlnext.evaluation.table import PARITY_COLUMNS, parity_cells

if TYPE_CHECKING:
    from controlnext.evaluation.layer_diff import GraphDifferences
    from controlnext.evaluation.ranges import Ranges, TensorRange

SHOWN = 20
"""Largest number of rows in a table; the JSON output has all."""


def print_parity(rows: Sequence[ParityRow]) -> None:
    """Print the parity table on stdout."""
    print_table("Engine against PyTorch", PARITY_COLUMNS, [parity_cells(row) for row in rows])


def print_layers(found: list[GraphDifferences]) -> None:
    """Print one table per graph on stdout."""
    for graph in found:
        first = "none" if graph.first is None else f"{graph.first.node} ({graph.first.error:.1e})"
        print(f"{graph.graph}: {graph.compared} tensors compared, first above {graph.tolerance:g}: {first}")
        rows = [(row.node, row.tensor, f"{row.error:.1e}", f"{row.largest:.3g}") for row in graph.worst]
        print_table("Largest differences", ("node", "tensor", "relative L2", "largest number"), rows)
    if not found:
        print("all graphs are equal")


def print_ranges(ranges: Ranges) -> None:
    """Print the start of both rankings as tables on stdout."""
    tensors, modules = ranges.tensors[:SHOWN], ranges.modules[:SHOWN]
    print_table(
        f"Largest numbers: {len(tensors)} of {len(ranges.tensors)} tensors",
        ("tensor", "kept as", "largest", "room", "to zero"),
        [_tensor_cells(tensor) for tensor in tensors],
    )
    print_table(
        f"Error by rounding to float16: {len(modules)} of {len(ranges.modules)} modules",
        ("module", "relative L2"),
        [(f"{module.graph}: {module.module or '(all)'}", f"{module.error:.1e}") for module in modules],
    )


def _tensor_cells(tensor: TensorRange) -> tuple[str, ...]:
    room = f"{tensor.room:.2g} x" if tensor.peak else ""
    stored = "float16" if tensor.float16 else "float32"
    return f"{tensor.graph}: {tensor.tensor}", stored, f"{tensor.peak:.3g}", room, f"{tensor.flushed:.1%}"
