"""Choose the layers of a denoiser that become int8, and their grids, on the steps of sampling runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from controlnext.bundle.manifest import LayerScales, Quantization
from controlnext.errors import WorkError
from controlnext.export.passes.names import name_of
from controlnext.export.passes.observers import LARGEST, SAMPLE, SIZE, observe
from controlnext.export.passes.quantize import Layer, layers
from controlnext.export.quantization.config import DEFAULT, CalibrationSettings
from controlnext.export.quantization.histogram import HistogramObserver
from controlnext.export.quantization.sensitivity import mapped_session, measure_errors
from controlnext.tensor_spec import TensorSpec
from controlnext.types import Feed, Progress
from controlnext.weights.graphs import read_graph

Denoise = Callable[[Feed], dict[str, np.ndarray]]
"""A denoiser: outputs by name for inputs by name."""
Sampling = Callable[[Denoise], None]
"""Runs a denoiser through sampling runs: prompts, control images, timesteps, guidance as in use."""


def calibrate(
    graph: Path,
    inputs: Sequence[TensorSpec],
    sampling: Sampling,
    progress: Progress,
    settings: CalibrationSettings = DEFAULT,
) -> Quantization:
    """Measure the float32 ``graph`` (a model.onnx of finished passes) while ``sampling`` uses it.

    Raises :class:`WorkError` if a sampling run has numbers that are not finite, or no step ran.
    """
    observed = _ObservedDenoiser(graph)
    sampling(observed)
    if not observed.feeds:
        raise WorkError("the calibration ran no step; give it a prompt and a control image")
    scales, work = observed.scales(settings.normalized), observed.work()
    steps = [round(at) for at in np.linspace(0, len(observed.feeds) - 1, settings.measured_steps + 2)[1:-1]]
    feeds = [crop(observed.feeds[step], inputs, settings.crop) for step in steps]
    observed.close()
    errors = measure_errors(graph, scales, work, feeds, settings, progress)
    kept = choose(errors, work, settings)
    quantized = [name for name in scales if name not in kept]
    return Quantization(
        layers={name: scales[name] for name in quantized},
        left_out={name: float(f"{errors[name]:.2e}") for name in kept},
        expected_error=float(f"{_total(errors, quantized):.2e}"),
        float_share=float(f"{sum(work[name] for name in kept) / sum(work.values()):.2e}"),
        steps=len(observed.feeds),
    )


def choose(
    errors: Mapping[str, float], work: Mapping[str, float], settings: CalibrationSettings = DEFAULT
) -> list[str]:
    """Return the layers that are not quantized, ordered by squared error for their work.

    The first of them, up to ``free_share`` of the work, are always excluded: that costs little and saves the
    most error. Then layers are excluded until the expected error is within ``target``, up to ``float_share``
    of the work. Errors of layers add up like independent noise: squared.
    """
    order = sorted(errors, key=lambda name: errors[name] ** 2 / work[name], reverse=True)
    total = sum(work.values())
    kept: list[str] = []
    needed: list[str] = []

    def left() -> float:
        return sum(errors[name] ** 2 for name in order if name not in kept and name not in needed)

    def share(name: str) -> float:
        return sum(work[other] for other in (*kept, *needed, name)) / total

    for name in order:
        if share(name) <= settings.free_share:
            kept.append(name)
    for name in order:
        if name not in kept and left() > settings.target**2 and share(name) <= settings.float_share:
            needed.append(name)
    # the last ones may have reduced the error more than needed
    for name in sorted(needed, key=lambda name: work[name], reverse=True):
        if left() + errors[name] ** 2 <= settings.target**2:
            needed.remove(name)
    return kept + needed


def crop(feed: Feed, inputs: Sequence[TensorSpec], largest: int) -> dict[str, np.ndarray]:
    """Return the conditional row of a step cropped to the upper left corner.

    ``largest``: height and width at most, in the specs' units.
    """
    small = {}
    for spec in inputs:
        array = feed[spec.name][-1:]
        for axis, dim in enumerate(spec.shape):
            factor, _, symbol = str(dim).rpartition("*")
            if symbol in ("height", "width"):
                array = array.take(range(min(array.shape[axis], largest * int(factor or 1))), axis)
        small[spec.name] = array
    return small


class _ObservedDenoiser:
    """The denoiser, with observers of the inputs and outputs of its layers at every step."""

    def __init__(self, graph: Path) -> None:
        model = read_graph(graph)
        self.layers = {name_of(layer.node): layer for layer in layers(model)}
        # layers that produce an output of the graph are not quantized
        self.layers = {n: la for n, la in self.layers.items() if not la.node.outputs[0].is_graph_output()}
        self.inputs = {name: name_of(_source(layer)) for name, layer in self.layers.items()}
        self.outputs = {name: name_of(layer.node.outputs[0]) for name, layer in self.layers.items()}
        self.magnitudes = {
            name: HistogramObserver() for name in {*self.inputs.values(), *self.outputs.values()}
        }
        convolutions = [name for name, layer in self.layers.items() if layer.node.op_type == "Conv"]
        self.normalized = {name: (HistogramObserver(), HistogramObserver()) for name in convolutions}
        self.counts: dict[str, int] = {}
        self.feeds: list[Feed] = []
        self.path = graph.with_name("observed.onnx")
        self.names = [name_of(value) for value in model.graph.outputs]
        ir.save(observe(model, sorted(self.magnitudes)), self.path)
        self.session = mapped_session(self.path)

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        self.feeds.append(dict(feed))
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, dict(feed)), strict=True))
        for name, magnitudes in self.magnitudes.items():
            if not np.isfinite(found[name + LARGEST]):
                raise WorkError(f"{name} is not finite in a calibration run; check the weights")
            magnitudes.add(found[name + SAMPLE], found[name + LARGEST])
            self.counts[name] = int(found[name + SIZE])
        for name, both in self.normalized.items():
            unit = np.abs(found[self.inputs[name] + SAMPLE]).mean() or 1.0
            for value, magnitudes in zip((self.inputs[name], self.outputs[name]), both, strict=True):
                magnitudes.add(found[value + SAMPLE] / unit, found[value + LARGEST] / unit)
        return {name: found[name] for name in self.names}

    def scales(self, normalized: float) -> dict[str, LayerScales]:
        """Return the grids of every layer; ``normalized``: as in the settings."""
        best = {name: magnitudes.mse_optimal_scale() for name, magnitudes in self.magnitudes.items()}
        scales = {}
        for name in self.layers:
            (step, error), (output_step, output_error) = best[self.inputs[name]], best[self.outputs[name]]
            if name not in self.normalized:
                scales[name] = LayerScales(step)
                continue
            scales[name] = LayerScales(step, output_step)
            inside, outside = (magnitudes.mse_optimal_scale() for magnitudes in self.normalized[name])
            if inside[1] + outside[1] < normalized * (error + output_error):
                scales[name] = LayerScales(inside[0], outside[0], normalized=True)
        return scales

    def work(self) -> dict[str, float]:
        """Return the number of multiplications of each layer in the last step: outputs by weights a
        channel."""
        return {
            name: self.counts[self.outputs[name]] * math.prod(layer.shape) / layer.shape[layer.axis]
            for name, layer in self.layers.items()
        }

    def close(self) -> None:
        """Release resources: the session and its file."""
        del self.session
        self.path.unlink()


def _source(layer: Layer) -> ir.Value:
    source = layer.node.inputs[0]
    assert source is not None
    return source


def _total(errors: Mapping[str, float], names: Sequence[str]) -> float:
    return float(np.sqrt(sum(errors[name] ** 2 for name in names)))
