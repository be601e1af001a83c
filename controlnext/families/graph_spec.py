"""Graphs as a family's entry has them: inputs, outputs, and what else an export needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from controlnext.image_prompts import numbered_adapters, scale_spec
from controlnext.tensor_spec import (
    LORA_RANK,
    LORA_ROWS,
    ControlInputs,
    TensorSpec,
    lora_specs,
    numbered_controls,
)

Config = Mapping[str, Any]

CLASS = "_class_name"
"""The key of the class in configurations of diffusers."""

PER_STEP_INPUTS = ("sample", "timestep")
"""The denoiser's inputs that change at every step."""

SKIPPED = "skipped_prompt_embeds"
"""The output of a text encoder for prompts where the last layers are skipped; negative prompts take the
other one."""


@dataclass(frozen=True)
class CachedFeature:
    """A feature of a denoiser that the step cache keeps: full steps compute it, shallow steps take it over.

    ``spec`` is its name and shape as an output of the graph; its first axis has the rows of the batch, for a
    clip those of each frame. It is an output of ``module``, a dotted path in the denoiser: of several the
    one with index ``output``. With ``since`` it is the difference between that output and what enters the
    module ``since`` as ``argument``: a shallow step adds it to its own.
    """

    spec: TensorSpec
    module: str
    output: int = 0
    since: str = ""
    argument: str = ""


@dataclass(frozen=True)
class GraphSpec:
    """One exported graph: its name (also its directory's in the bundle), its network, inputs and outputs.

    ``wrapper`` names the adapter in :mod:`controlnext.export.adapters` that gives the network this graph's
    signature. ``float32``: what stays in float32 at lower precision, each with its reason: everything within
    modules of a name (``"wo"``), or nodes by a pattern of their module's path and operator
    (``"*.layer.[01]/Add"``, in the rules of :mod:`fnmatch`).
    """

    name: str
    network: str
    wrapper: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Callable[[Config], dict[str, int]] = field(default=lambda _config: {})
    trace_sizes: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False
    of_class: Mapping[str, GraphSpec] = field(default_factory=dict)
    """This graph of a network of another class, by the class."""
    runs: bool = True
    """Whether the runtime needs it; a graph that it does not need may be missing from a bundle."""
    float32: Mapping[str, str] = field(default_factory=dict)
    prologue: bool = False
    """Whether ONNX Runtime computes what does not depend on :data:`PER_STEP_INPUTS` once for each image. The
    results stay in memory: for a clip these would be the features of every frame."""
    cached: Callable[[Config], tuple[CachedFeature, ...]] = field(default=lambda _config: ())
    """The features between a denoiser's deep and its shallow part, from its configuration; none if it cannot
    be cut."""
    clip_skip: int = 0
    """The number of last layers that a text encoder's output :data:`SKIPPED` leaves out; 0: it has none."""

    def with_features(self, config: Config) -> GraphSpec:
        """Return the graph with the features for the step cache as further outputs."""
        return replace(self, outputs=(*self.outputs, *(one.spec for one in self.cached(config))))

    def of(self, config: Config) -> GraphSpec:
        """Return the graph of a network with this configuration: that of its class, without the inputs that
        it does not need."""
        own = self.of_class.get(config.get(CLASS, ""), self)
        inputs = [spec for spec in own.inputs if spec.is_input_of(config)]
        return replace(own, inputs=tuple(inputs))

    def with_controls(self, count: int) -> GraphSpec:
        """Return the graph with ``count`` control images and scales: ``control_image``, ``control_image_2``,
        ...

        Each image has its own batch size. A graph without a control image is returned unchanged. With a
        count of 0 the denoiser's graph is that of the base model.
        """
        first, further = ControlInputs(), numbered_controls(count)[1:]
        controls = [spec for spec in self.inputs if spec.name in (first.image, first.scale)]
        inputs = [spec for spec in self.inputs if count or spec not in controls]
        for spec in controls:
            inputs += [spec.for_control(control) for control in further]
        trace = dict(self.trace_sizes)
        if first.batch in trace:
            trace |= dict.fromkeys((control.batch for control in further), trace[first.batch])
        return replace(self, inputs=tuple(inputs), trace_sizes=trace)

    def with_image_prompts(self, embeddings: Sequence[Sequence[int]]) -> GraphSpec:
        """Return the graph with the inputs for image prompts behind its own, unchanged without adapters.

        ``embeddings``: the shape of what each adapter reads of an image.
        """
        if not embeddings:
            return self
        adapters = numbered_adapters(len(embeddings))
        inputs = [one.spec(shape) for one, shape in zip(adapters, embeddings, strict=True)]
        trace = {**self.trace_sizes, **{one.images: 5 + one.number for one in adapters}}
        return replace(self, inputs=(*self.inputs, *inputs, scale_spec(len(adapters))), trace_sizes=trace)

    def with_loras(self, down: int, up: int) -> GraphSpec:
        """Return the graph with the inputs for LoRAs, of so many columns, behind its own."""
        trace = {**self.trace_sizes, **_LORA_TRACE}
        return replace(self, inputs=(*self.inputs, *lora_specs(down, up)), trace_sizes=trace)

    def with_clip_skip(self, layers: int) -> GraphSpec:
        """Return a text encoder's graph with its embeddings without the last ``layers`` as a further
        output."""
        skipped = replace(self.outputs[0], name=SKIPPED)
        return replace(self, outputs=(*self.outputs, skipped), clip_skip=layers)


_LORA_TRACE = MappingProxyType({LORA_ROWS: 2, LORA_RANK: 5})
