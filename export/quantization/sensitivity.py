"""Measure the error of a denoiser's output with each single layer in int8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from controlnext import processor
from controlnext.bundle.manifest import LayerScales
from controlnext.export.passes.names import name_of
from controlnext.export.passes.prologue import split_prologue
from controlnext.export.passes.quantize import layers
from controlnext.export.passes.switches import SWITCHES, switch
from controlnext.export.quantization.config import CalibrationSettings
from controlnext.onnx_runtime import load_onnxruntime
from controlnext.types import Feed, Progress
from controlnext.weights.graphs import read_graph

_LATENTS = "sample"


def measure_errors(
    graph: Path,
    scales: Mapping[str, LayerScales],
    work: Mapping[str, float],
    feeds: Sequence[Feed],
    settings: CalibrationSettings,
    progress: Progress,
) -> dict[str, float]:
    """Return the relative error of the output with one layer in int8, by layer: an RMS over ``feeds``.

    Matrix products are many and mostly harmless. So a group of them is measured layer by layer only if its
    squared error is more than twice its share of the squared ``target`` of the settings, by ``work``.
    Otherwise each layer gets its share of the group's error.
    """
    error = _SwitchedError(graph, scales, feeds)
    groups, total = _groups(scales, settings.group), sum(work.values())
    squares: dict[str, float] = {}
    for number, group in enumerate(groups):
        together, share = error(group), sum(work[name] for name in group)
        apart = len(group) > 1 and together > 2 * settings.target**2 * share / total
        for name in group:
            squares[name] = error([name]) if apart else together * work[name] / share
        progress("measuring layers", (number + 1) / len(groups))
    error.close()
    return {name: math.sqrt(squares[name]) for name in scales}


def _groups(scales: Mapping[str, LayerScales], largest: int) -> list[list[str]]:
    """Return each convolution by itself, and consecutive matrix products in groups."""
    groups: list[list[str]] = []
    open_group = False
    for name, scale in scales.items():
        product = scale.output is None
        if product and open_group and len(groups[-1]) < largest:
            groups[-1].append(name)
        else:
            groups.append([name])
        open_group = product
    return groups


class _SwitchedError:
    """The squared relative error of the output with some layers in int8: a mean over steps.

    The part that does not depend on the latents, mainly the control module, is a separate graph and runs
    again only if one of its layers is switched: in a small model it is most of the work.
    """

    def __init__(self, graph: Path, scales: Mapping[str, LayerScales], feeds: Sequence[Feed]) -> None:
        once, rest = split_prologue(read_graph(graph), [_LATENTS])
        self.once, self.rest = (
            _Switched(part, scales, graph.with_name(f"switched.{number}.onnx"))
            for number, part in enumerate((once, rest))
        )
        self.feeds = [{**feed, **self.once.run(feed, ())} for feed in feeds]
        self.wanted = [self._run(feed, ()) for feed in self.feeds]

    def __call__(self, on: Sequence[str]) -> float:
        errors = [
            np.sum((self._run(feed, on) - wanted) ** 2) / np.sum(wanted**2)
            for feed, wanted in zip(self.feeds, self.wanted, strict=True)
        ]
        return float(np.mean(errors))

    def _run(self, feed: Feed, on: Sequence[str]) -> np.ndarray:
        given = {**feed, **self.once.run(feed, on)} if self.once.has(on) else feed
        (output,) = self.rest.run(given, on).values()
        return output.astype(np.float64)

    def close(self) -> None:
        """Release resources: the sessions and their files."""
        for part in (self.once, self.rest):
            part.close()


class _Switched:
    """A graph with switches for its layers that have grids, written to ``path``."""

    def __init__(self, model: ir.Model, scales: Mapping[str, LayerScales], path: Path) -> None:
        own = {name_of(layer.node) for layer in layers(model)}
        self.names = [name for name in scales if name in own]
        self.path = path
        ir.save(switch(model, {name: scales[name] for name in self.names}), path)
        self.session = mapped_session(path)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def has(self, on: Sequence[str]) -> bool:
        """Return whether any of these layers is in this graph."""
        return not set(on).isdisjoint(self.names)

    def run(self, feed: Feed, on: Sequence[str]) -> dict[str, np.ndarray]:
        given = {**feed, SWITCHES: np.array([name in on for name in self.names], bool)}
        outputs = self.session.run(self.outputs, {name: given[name] for name in self.inputs})
        return dict(zip(self.outputs, outputs, strict=True))

    def close(self) -> None:
        """Release resources: the session and its file."""
        del self.session
        self.path.unlink()


def mapped_session(path: Path) -> Any:
    """Return a session that maps the weights' file, without packed, folded or reordered copies."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processor.usable_cores()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    # in the order of the file the readers of a value run soon after it, and its memory is freed
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(
        str(path), options, disabled_optimizers=["ConstantFolding", "NchwcTransformer"]
    )
