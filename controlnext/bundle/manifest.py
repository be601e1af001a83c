"""The bundle's manifest, ``controlnext.json``: the content of the directory and its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from controlnext.bundle.files import MANIFEST
from controlnext.tensor_spec import TensorSpec
from controlnext.types import Precision

SCHEMA = 2
"""Schema of manifests that are written; :mod:`controlnext.bundle.schema` reads earlier ones."""


# A manifest comes from outside: msgspec refuses numbers and texts that are not of these kinds.
Count = Annotated[int, Meta(ge=0, le=1 << 24)]
"""A number of things, or a size of an array."""
Number = Annotated[int, Meta(ge=1, le=1 << 24)]
"""The same, where none is not enough."""
Ratio = Annotated[float, Meta(ge=0, le=1e30)]
"""A number that is neither negative nor infinite."""
Scale = Annotated[float, Meta(gt=0, le=1e30)]
Name = Annotated[str, Meta(min_length=1, max_length=500)]
Symbol = Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,6}\*)?[a-z][a-z0-9_]{0,60}$")]
"""A symbol in the shape of a tensor: ``"batch"``, or a multiple of one, ``"8*height"``."""


class FileEntry(msgspec.Struct, frozen=True):
    """Checksum and size of one file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Meta(ge=0, le=1 << 53)]


class TensorEntry(msgspec.Struct, frozen=True):
    """A :class:`~controlnext.tensor_spec.TensorSpec` with its sizes resolved."""

    name: Name
    dtype: Name
    shape: Annotated[list[Number | Symbol], Meta(max_length=8)]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorEntry:
        """Return the entry for ``spec``, whose sizes are resolved."""
        return cls(spec.name, spec.dtype, list(spec.shape))

    def spec(self) -> TensorSpec:
        """Return the entry as a :class:`~controlnext.tensor_spec.TensorSpec`."""
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class LayerScales(msgspec.Struct, frozen=True, omit_defaults=True):
    """Scales of the symmetric int8 grids of a layer's activations: of its input, and of its output if that is
    quantized too. ``normalized``: both are divided by the mean magnitude of the input's row first."""

    input: Scale
    output: Scale | None = None
    normalized: bool = False


class Quantization(msgspec.Struct, frozen=True):
    """The result of calibrating a graph: its quantized layers, by node name.

    ``left_out``: layers that are not quantized, with the relative error of the graph's output that each alone
    would cause if it were. ``expected_error``: the same for all quantized layers together. ``float_share``:
    the share of the layers' multiplications that is not quantized. ``steps``: the number of denoising steps
    that were observed.
    """

    layers: dict[str, LayerScales]
    left_out: dict[str, Ratio]
    expected_error: Ratio
    float_share: Annotated[float, Meta(ge=0, le=1)]
    steps: Count


class Shallow(msgspec.Struct, frozen=True):
    """The shallow part of a denoiser (``<directory>/shallow.onnx``), for the step cache.

    ``features``: further outputs of the denoiser's graph, which the shallow part takes besides ``inputs``,
    the names of those of the graph that it reads.
    """

    inputs: list[str]
    features: list[TensorEntry]


class LoraLayer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A layer that LoRAs can change: its ``name`` in the network, and its columns in a graph's LoRA inputs.

    ``down``, ``up``: the first column, and the one after the last, in each of the two. A convolution has a
    ``kernel``, height and width; its columns ``down`` are in the order height, width, channel. ``original``:
    the name of its weight in original checkpoints, without ``.weight``, where that is another.
    """

    name: str
    down: tuple[Count, Count]
    up: tuple[Count, Count]
    kernel: tuple[Number, Number] = (1, 1)
    original: str = ""


class LoraRoom(msgspec.Struct, frozen=True):
    """The room of a graph for LoRAs: the largest ``rank`` of all in a run together, and the layers."""

    rank: Number
    layers: Annotated[list[LoraLayer], Meta(min_length=1)]

    @property
    def columns(self) -> tuple[int, int]:
        """The numbers of columns of the two inputs."""
        last = self.layers[-1]
        return last.down[1], last.up[1]


class ImagePrompt(msgspec.Struct, frozen=True):
    """An IP-Adapter of a denoiser: its ``kind`` (:data:`controlnext.image_prompts.KINDS`), the number of
    ``tokens`` that it makes of an image, and the shape of what it reads of one."""

    kind: str
    tokens: Number
    embedding: Annotated[list[Number], Meta(min_length=1, max_length=2)]


class Graph(msgspec.Struct, frozen=True):
    """One ONNX graph of the bundle (``<directory>/model.onnx``) and the configuration of its network.

    ``compute`` and ``quantization`` are set if the ``precision`` is a calibrated one: the arithmetic of the
    layers that are not quantized, and the result of calibration. ``shallow``: for a denoiser that was
    exported for the step cache. ``lora``: for a graph that was exported with room for LoRAs.
    ``clip_skip``: for a text encoder, the number of last layers that the embeddings of prompts leave out.
    ``image_prompts``: the IP-Adapters of a denoiser that was exported with some.
    """

    network: str
    precision: Precision
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    compute: Precision | None = None
    quantization: Quantization | None = None
    shallow: Shallow | None = None
    lora: LoraRoom | msgspec.UnsetType = msgspec.UNSET
    clip_skip: Annotated[int, Meta(ge=1, le=1000)] | msgspec.UnsetType = msgspec.UNSET
    image_prompts: list[ImagePrompt] | msgspec.UnsetType = msgspec.UNSET

    @property
    def adapters(self) -> list[ImagePrompt]:
        """The IP-Adapters; none for a graph without."""
        return self.image_prompts or []


class Source(msgspec.Struct, frozen=True):
    """The origin of weights: the name of a file or directory (never its path) or a hub id, and a digest."""

    role: str
    name: str
    sha256: str = ""
    detail: str = ""


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """The origin of a setting of the scheduler: the ``base``'s own file, the family's ``shipped`` defaults
    (for single files), a ``marker`` in the checkpoint or its metadata, the stock ``pipeline`` that sets it in
    every base, or an ``option`` of the export; ``name``: of the base, the marker or the pipeline."""

    origin: Literal["base", "shipped", "marker", "pipeline", "option"]
    name: str = ""


class ParityRow(msgspec.Struct, frozen=True):
    """One measured difference between the engine and the PyTorch reference."""

    name: str
    metric: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Manifest(msgspec.Struct, frozen=True):
    """The content of ``controlnext.json``.

    ``configs``: the configuration of every network by name, as in the diffusers checkpoint. ``options``:
    pipeline options of the checkpoint (``force_zeros_for_empty_prompt``). ``parity``: the measurements of the
    export; empty if it was not verified. ``scheduler``: the origin of each setting of
    ``scheduler/scheduler_config.json``; empty in bundles of earlier releases.
    """

    schema: int
    family: str
    variant: str
    precision: Precision
    graphs: dict[str, Graph]
    configs: dict[str, dict[str, Any]]
    options: dict[str, Any]
    sources: list[Source]
    tools: dict[str, str]
    files: dict[str, FileEntry]
    parity: list[ParityRow] = []
    scheduler: dict[str, Setting] = {}

    def graph(self, name: str) -> Graph:
        """Return the graph of that name, or the shallow part of one (:func:`shallow_name`) as a graph."""
        whole = self.graphs[name.removesuffix(_SHALLOW)]
        if name in self.graphs or whole.shallow is None:
            return self.graphs[name]
        inputs = [tensor for tensor in whole.inputs if tensor.name in whole.shallow.inputs]
        return msgspec.structs.replace(whole, inputs=inputs + whole.shallow.features, shallow=None)

    @property
    def clip_skip(self) -> int:
        """The number of last layers of text encoders that the embeddings of prompts leave out."""
        return max((graph.clip_skip or 0 for graph in self.graphs.values()), default=0)

    @property
    def parts(self) -> list[str]:
        """The names of all graphs, with that of the shallow part after each that has one."""
        return [
            name
            for graph_name, graph in self.graphs.items()
            for name in ([graph_name, shallow_name(graph_name)] if graph.shallow else [graph_name])
        ]


_SHALLOW = ".shallow"


def shallow_name(graph_name: str) -> str:
    """Return the name of the shallow part of a graph, by which backends open and build it."""
    return f"{graph_name}{_SHALLOW}"


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest as indented JSON with sorted keys: equal manifests give equal files."""
    content = msgspec.json.encode(manifest, order="sorted")
    (bundle / MANIFEST).write_bytes(msgspec.json.format(content, indent=2) + b"\n")
