"""Which layers of a denoiser become int8, and on which grids: measured on the steps of real sampling runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from controlnext.errors import WorkError
from controlnext.export.grids import Magnitudes
from controlnext.export.passes.quantize import Layer, layers
from controlnext.export.passes.switches import SWITCHES, switch
from controlnext.export.passes.taps import LARGEST, SAMPLE, SIZE, tap
from controlnext.manifest import Int8, LayerScales
from controlnext.specs import TensorSpec

Feed = Mapping[str, np.ndarray]
Denoise = Callable[[Feed], dict[str, np.ndarray]]
"""A denoiser: outputs by name for inputs by name."""
Sampling = Callable[[Denoise], None]
"""Runs a denoiser through sampling runs: prompts, control pictures, timesteps, guidance as in use."""
Progress = Callable[[str, float], None]

TARGET = 0.025
"""Expected relative error of the denoiser's output: what int8 may cost, so that all of it stays below 3 %."""
FLOAT_SHARE = 0.2
"""At most this share of the multiplications stays as it is, whatever the error: int8 has to be worth it."""
CROP = 16
"""Largest height and width, in the tensor specs' units, of the steps on which layers are measured one by one."""
MEASURED = 3
"""So many steps of the sampling runs, from early to late."""


def calibrate(graph: Path, inputs: Sequence[TensorSpec], sampling: Sampling, progress: Progress) -> Int8:
    """Measure the float32 ``graph`` (a model.onnx of finished passes) while ``sampling`` uses it.

    Raises :class:`WorkError` where a sampling run gives numbers that are not finite, or none ran.
    """
    taps = _Taps(graph)
    sampling(taps)
    if not taps.feeds:
        raise WorkError("the calibration ran no step; give it a prompt and a control picture")
    scales, work = taps.scales(), taps.work()
    steps = [round(at) for at in np.linspace(0, len(taps.feeds) - 1, MEASURED + 2)[1:-1]]
    feeds = [crop(taps.feeds[step], inputs) for step in steps]
    taps.close()
    errors = _measure(graph, scales, feeds, progress)
    kept = choose(errors, work)
    quantized = [name for name in scales if name not in kept]
    return Int8(
        layers={name: scales[name] for name in quantized},
        left_out={name: float(f"{errors[name]:.2e}") for name in kept},
        expected_error=float(f"{_total(errors, quantized):.2e}"),
        float_share=float(f"{sum(work[name] for name in kept) / sum(work.values()):.2e}"),
        steps=taps.count,
    )


def choose(errors: Mapping[str, float], work: Mapping[str, float]) -> list[str]:
    """The layers that stay as they are: those with the most squared error for their work, first.

    Errors of layers add up like independent noise: squared. Layers are left out until what remains is within
    :data:`TARGET`, unless that takes more than :data:`FLOAT_SHARE` of the work.
    """
    order = sorted(errors, key=lambda name: errors[name] ** 2 / work[name], reverse=True)
    left, share, kept = sum(error**2 for error in errors.values()), 0.0, []
    allowed = FLOAT_SHARE * sum(work.values())
    for name in order:
        if left <= TARGET**2:
            break
        if share + work[name] > allowed:
            continue
        kept.append(name)
        left, share = left - errors[name] ** 2, share + work[name]
    return kept


def crop(feed: Feed, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The conditional row of a step in the upper left corner: the same numbers, but fewer."""
    small = {}
    for spec in inputs:
        array = feed[spec.name][-1:]
        for axis, dim in enumerate(spec.shape):
            factor, _, symbol = str(dim).rpartition("*")
            if symbol in ("height", "width"):
                array = array.take(range(min(array.shape[axis], CROP * int(factor or 1))), axis)
        small[spec.name] = array
    return small


class _Taps:
    """The denoiser, with a look at what its layers read and write at every step."""

    def __init__(self, graph: Path) -> None:
        model = ir.load(graph)
        self.layers = {f"{layer.node.name}": layer for layer in layers(model)}
        # what the graph itself gives out stays as precise as it is
        self.layers = {n: la for n, la in self.layers.items() if not la.node.outputs[0].is_graph_output()}
        self.inputs = {name: f"{layer.node.inputs[0].name}" for name, layer in self.layers.items()}
        self.outputs = {name: f"{layer.node.outputs[0].name}" for name, layer in self.layers.items()}
        self.sizes = {name: layer.weight.const_value.size for name, layer in self.layers.items()}
        self.magnitudes = {name: Magnitudes() for name in {*self.inputs.values(), *self.outputs.values()}}
        self.counts: dict[str, int] = {}
        self.feeds: list[Feed] = []
        self.path = graph.with_name("tapped.onnx")
        names = [f"{value.name}" for value in model.graph.outputs]
        ir.save(tap(model, sorted(self.magnitudes)), self.path)
        self.session = _session(self.path)
        self.names = names

    @property
    def count(self) -> int:
        """How many steps were seen."""
        return len(self.feeds)

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        self.feeds.append(dict(feed))
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, dict(feed)), strict=True))
        for name, magnitudes in self.magnitudes.items():
            if not np.isfinite(found[name + LARGEST]):
                raise WorkError(f"{name} is not finite in a calibration run; check the weights")
            magnitudes.add(found[name + SAMPLE], found[name + LARGEST])
            self.counts[name] = int(found[name + SIZE])
        return {name: found[name] for name in self.names}

    def scales(self) -> dict[str, LayerScales]:
        """The grids of every layer."""
        steps = {name: magnitudes.best_step() for name, magnitudes in self.magnitudes.items()}
        return {
            name: LayerScales(
                steps[self.inputs[name]],
                steps[self.outputs[name]] if layer.node.op_type == "Conv" else None,
            )
            for name, layer in self.layers.items()
        }

    def work(self) -> dict[str, float]:
        """Multiplications of every layer in the last step: each output takes a weight of its channel."""
        return {
            name: self.counts[self.outputs[name]] * self.sizes[name] / _channels(layer)
            for name, layer in self.layers.items()
        }

    def close(self) -> None:
        """Give the memory back."""
        del self.session
        self.path.unlink()


def _measure(
    graph: Path, scales: Mapping[str, LayerScales], feeds: Sequence[Feed], progress: Progress
) -> dict[str, float]:
    """Relative error of the output, by layer, with that layer alone in int8: its mean square over ``feeds``."""
    path = graph.with_name("switched.onnx")
    ir.save(switch(ir.load(graph), scales), path)
    # folded constants would be a copy of all weights
    session = _session(path, without=["ConstantFolding"])
    squares = np.zeros(len(scales))
    for number, feed in enumerate(feeds):
        on = np.zeros(len(scales), bool)
        wanted = session.run(None, {**feed, SWITCHES: on})[0].astype(np.float64)
        for index in range(len(scales)):
            on[index] = True
            found = session.run(None, {**feed, SWITCHES: on})[0]
            on[index] = False
            squares[index] += np.sum((found - wanted) ** 2) / np.sum(wanted**2) / len(feeds)
            progress("measuring layers", (number + (index + 1) / len(scales)) / len(feeds))
    path.unlink()
    return dict(zip(scales, np.sqrt(squares).tolist(), strict=True))


def _session(path: Path, without: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, disabled_optimizers=list(without))


def _channels(layer: Layer) -> int:
    weight = layer.weight.const_value
    assert weight is not None
    return int(weight.shape[1 - layer.channels if layer.transposed else layer.channels])


def _total(errors: Mapping[str, float], names: Sequence[str]) -> float:
    return float(np.sqrt(sum(errors[name] ** 2 for name in names)))
