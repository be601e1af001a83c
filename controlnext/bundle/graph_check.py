"""Check of a graph's entry in a manifest against the registry's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from controlnext.errors import BundleError
from controlnext.families.graph_spec import GraphSpec
from controlnext.image_prompts import KINDS
from controlnext.tensor_spec import PRODUCTS, TensorSpec, control_inputs, split_dim

if TYPE_CHECKING:
    from controlnext.bundle.manifest import Graph, LoraRoom, Shallow, TensorEntry

MOST_CONTROLS = 100
"""The largest number of controls of a denoiser."""


def check_graph(spec: GraphSpec, graph: Graph) -> None:
    """Raise :class:`BundleError` for the first thing that is not as ``spec`` has it: the network, inputs and
    outputs with their types and shapes, or what the graph was exported with besides."""
    if graph.network != spec.network:
        raise _wrong(spec, f"network is {graph.network!r}; expected {spec.network!r}")
    _check_precision(spec, graph)
    for adapter in graph.adapters:
        if adapter.kind not in KINDS:
            known = ", ".join(KINDS)
            raise _wrong(spec, f"image_prompts has the unknown kind {adapter.kind!r}; accepted: {known}")
    if graph.lora:
        _check_room(spec, graph.lora)
    _check_tensors(spec, graph)
    if graph.shallow:
        _check_shallow(spec, graph, graph.shallow)


def _wrong(spec: GraphSpec, problem: str) -> BundleError:
    return BundleError(f"graphs.{spec.name}.{problem}")


def _check_precision(spec: GraphSpec, graph: Graph) -> None:
    calibrated = graph.precision.calibrated
    if calibrated != (graph.quantization is not None) or calibrated != (graph.compute is not None):
        wanted = "both" if calibrated else "neither"
        raise _wrong(spec, f"precision is {graph.precision}; expected {wanted} of compute and quantization")
    if graph.compute and graph.compute.calibrated:
        raise _wrong(spec, f"compute is {graph.compute}; expected a precision that is not calibrated")


def _check_room(spec: GraphSpec, room: LoraRoom) -> None:
    """The layers' columns lie side by side: each begins where the one before ends."""
    down = up = 0
    for layer in room.layers:
        if (layer.down[0], layer.up[0]) != (down, up) or layer.down[1] <= down or layer.up[1] <= up:
            raise _wrong(spec, f"lora: the columns of {layer.name!r} do not follow those of the layer before")
        (_, down), (_, up) = layer.down, layer.up


def _check_tensors(spec: GraphSpec, graph: Graph) -> None:
    controls = len(control_inputs(tensor.name for tensor in graph.inputs))
    if controls > MOST_CONTROLS:
        raise _wrong(spec, f"inputs has {controls} control images; accepted: up to {MOST_CONTROLS}")
    wanted = spec.with_controls(controls)
    wanted = wanted.with_image_prompts([adapter.embedding for adapter in graph.adapters])
    if graph.lora:
        wanted = wanted.with_loras(*graph.lora.columns)
    if graph.clip_skip:
        wanted = wanted.with_clip_skip(graph.clip_skip)
    for side, found, expected in (
        ("inputs", graph.inputs, wanted.inputs),
        ("outputs", graph.outputs, wanted.outputs),
    ):
        # a name that is there twice is one too many
        if sorted(tensor.name for tensor in found) != sorted(tensor.name for tensor in expected):
            raise _wrong(spec, f"{side} are {_names(found)}; expected {_names(expected)}")
        shapes = {tensor.name: tensor for tensor in expected}
        for tensor in found:
            like = shapes[tensor.name]
            if not _fits(tensor, like):
                raise _wrong(
                    spec,
                    f"{side}: {tensor.name} is {tensor.dtype!r} {tensor.shape}; expected {like.dtype}"
                    f" {list(like.shape)}",
                )


def _names(tensors: Sequence[TensorEntry] | Sequence[TensorSpec]) -> str:
    return ", ".join(ascii(tensor.name)[1:-1] for tensor in tensors[:MOST_CONTROLS])


def _fits(found: TensorEntry, like: TensorSpec) -> bool:
    """Return whether type and shape are those of the spec, in which ``"@name"`` stands for any number."""
    sizes = zip(found.shape, like.shape, strict=False)
    same = all(isinstance(size, int) if str(dim).startswith("@") else size == dim for size, dim in sizes)
    return same and len(found.shape) == len(like.shape) and found.dtype == like.dtype


def _check_shallow(spec: GraphSpec, graph: Graph, shallow: Shallow) -> None:
    """It reads inputs of the graph, and features whose sizes follow from those of the inputs."""
    inputs = [tensor.name for tensor in graph.inputs]
    if unknown := [name for name in shallow.inputs if name not in inputs]:
        raise _wrong(spec, f"shallow.inputs has {unknown[0]!r}; accepted: {', '.join(inputs)}")
    names = [tensor.name for tensor in (*graph.inputs, *graph.outputs, *shallow.features)]
    if not shallow.features or len(set(names)) != len(names):
        raise _wrong(spec, "shallow.features has none, or a name that is taken")
    known = _symbols(graph.inputs) | PRODUCTS.keys()
    if unknown := sorted(_symbols(shallow.features) - known):
        raise _wrong(spec, f"shallow.features has the symbol {unknown[0]!r}; accepted: {', '.join(known)}")
    if odd := [tensor for tensor in shallow.features if tensor.dtype != "float32"]:
        raise _wrong(spec, f"shallow.features: {odd[0].name} is {odd[0].dtype!r}; expected float32")


def _symbols(tensors: Iterable[TensorEntry]) -> set[str]:
    dims = [dim for tensor in tensors for dim in tensor.shape if isinstance(dim, str)]
    return {split_dim(dim)[1] for dim in dims}
