"""A loaded checkpoint: configurations, and tensors that are read on access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from controlnext.bundle.manifest import Setting, Source
from controlnext.errors import blames
from controlnext.families import ControlSpec, Family, GraphSpec, Network, Variant
from controlnext.weights.control import empty_control
from controlnext.weights.ip_adapter import AdapterWeights
from controlnext.weights.networks import empty_module


@dataclass(frozen=True)
class NetworkWeights:
    """One network: its configuration and its tensors, each read on access.

    ``spec`` is None for a control module, whose ``config`` is its :class:`ControlSpec` as a dict.
    """

    spec: Network | None
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]

    def meta_module(self, traced: bool = False) -> nn.Module:
        """Return the network with parameters on the meta device and computed buffers in memory, in eval mode;
        ``traced``: with the configuration that graphs are traced with."""
        if self.spec is None:
            return empty_control(msgspec.convert(self.config, ControlSpec))
        return empty_module(self.spec, self.config | dict(self.spec.traced) if traced else self.config)

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the network with its weights, in eval mode and without gradients."""
        module = self.meta_module()
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.tensors.items()
        }
        module.load_state_dict(state, strict=True, assign=True)
        return module.requires_grad_(False)


@dataclass(frozen=True)
class Checkpoint:
    """A base model and its ControlNeXt weights.

    ``networks``: by the registry's names, and ``"control"``, ``"control_2"``, ... for the control modules;
    text encoders that the base does not have are absent. ``variant``: the registry's, the same for all
    control modules; each has its own widths in its configuration. ``tokenizers``: content of a
    ``tokenizer.json`` by directory name, with padding and truncation set; ``added_tokens``: what textual
    inversions added to those of ``directory``. ``scheduler``: content of
    ``scheduler_config.json``. ``options``: pipeline options of ``model_index.json``. ``random``: whether the
    weights are random numbers. ``settings``: the origin of each setting of the scheduler. ``directory``: the
    base's diffusers directory, from which stock diffusers can load it; None if the base is not one.
    ``clip_skip``: the number of last layers of text encoders that the embeddings of prompts leave out.
    ``adapters``: the IP-Adapters.
    """

    family: Family
    variant: Variant
    networks: dict[str, NetworkWeights]
    tokenizers: dict[str, str]
    scheduler: dict[str, Any]
    options: dict[str, Any]
    sources: list[Source]
    random: bool
    settings: dict[str, Setting] = field(default_factory=dict)
    directory: Path | None = None
    added_tokens: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clip_skip: int = 0
    adapters: Sequence[AdapterWeights] = ()

    @property
    def controls(self) -> list[NetworkWeights]:
        """The control modules, in the order in which they were given."""
        return [network for network in self.networks.values() if network.spec is None]

    def check_finite(self) -> None:
        """Read every tensor; raise :class:`CheckpointError` for one that holds NaN or infinity."""
        for network in self.networks.values():
            with blames("control" if network.spec is None else "base"):
                _read_all(network.tensors)
        for adapter in self.adapters:
            with blames("ip_adapter"):
                _read_all(adapter.tensors)

    def without_controls(self) -> Checkpoint:
        """Return the base model without control modules, with the tensors that were trained for them."""
        networks = {name: network for name, network in self.networks.items() if network.spec is not None}
        return replace(self, networks=networks)

    @property
    def graphs(self) -> list[GraphSpec]:
        """The graphs that an export of this checkpoint contains."""
        configs = {name: network.config for name, network in self.networks.items()}
        embeddings = [adapter.spec.embedding for adapter in self.adapters]
        graphs = [
            self._skipping(spec.of(configs.get(spec.network, {})).with_controls(len(self.controls)))
            for spec in self.family.graphs
            if not spec.optional or spec.network in self.networks
        ]
        return [
            graph.with_image_prompts(embeddings) if graph.name == self.family.denoiser else graph
            for graph in graphs
        ]

    def _skipping(self, spec: GraphSpec) -> GraphSpec:
        skips = self.clip_skip and spec.name in self.family.prompt_encoders
        return spec.with_clip_skip(self.clip_skip) if skips else spec


def _read_all(tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        # which raises for one that is not finite; none stays in memory
        tensors[name]
