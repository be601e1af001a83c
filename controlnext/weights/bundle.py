"""A checkpoint out of a finished bundle: its graphs keep every tensor under its state-dict name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from controlnext.errors import BundleError, CheckpointError
from controlnext.manifest import Manifest, check_file, read_manifest
from controlnext.registry import ControlSpec, Network, get_family
from controlnext.weights.checkpoint import Checkpoint, NetworkWeights
from controlnext.weights.control import empty_control
from controlnext.weights.lazy import LazyTensor, LazyTensors, held
from controlnext.weights.networks import Shape, empty_module, match, shapes_of
from controlnext.weights.shipped import SCHEDULER, read_json

_CONTROL = "control"
# prefix of the initializers of one network in a graph -> the network, where it is not the graph's own
_PREFIXES = {"network": None, "denoiser": None, _CONTROL: _CONTROL}


def bundle_checkpoint(bundle: Path) -> Checkpoint:
    """The checkpoint that ``bundle`` was exported from, in the bundle's precision; tensors are read lazily.

    Raises :class:`BundleError` for a bundle that is incomplete or damaged.
    """
    manifest = read_manifest(bundle)
    for name in manifest.files:
        check_file(bundle, manifest, name)
    family = get_family(manifest.family)
    spec = msgspec.convert(manifest.configs[_CONTROL], ControlSpec)
    networks = {
        name: _network(bundle, name, family.networks.get(name), manifest.configs[name], found)
        for name, found in _initializers(bundle, manifest).items()
    }
    tokenizers = sorted({network.spec.tokenizer for network in networks.values() if network.spec} - {""})
    return Checkpoint(
        family=family,
        variant=replace(family.variant(manifest.variant), control=spec),
        networks=networks,
        tokenizers={name: (bundle / name / "tokenizer.json").read_text("utf-8") for name in tokenizers},
        scheduler=read_json(bundle / SCHEDULER),
        options=manifest.options,
        sources=manifest.sources,
        random=any(source.role == "random" for source in manifest.sources),
    )


def _initializers(bundle: Path, manifest: Manifest) -> dict[str, dict[str, LazyTensor]]:
    """The tensors of every network under their state-dict names, from all the graphs that hold some."""
    found: dict[str, dict[str, LazyTensor]] = {}
    for folder, graph in manifest.graphs.items():
        model = ir.load(bundle / folder / "model.onnx")
        for name, value in model.graph.initializers.items():
            prefix, _, tensor = name.partition(".")
            if prefix in _PREFIXES and value.const_value is not None:
                network = _PREFIXES[prefix] or graph.network
                found.setdefault(network, {})[tensor] = _lazy(value.const_value)
    return found


def _lazy(tensor: ir.TensorProtocol) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape.numpy()), partial(_read, tensor))


def _read(tensor: ir.TensorProtocol) -> Tensor:
    return torch.from_numpy(np.array(tensor.numpy()))


def _network(
    bundle: Path, name: str, spec: Network | None, config: dict[str, Any], found: Mapping[str, LazyTensor]
) -> NetworkWeights:
    expected = shapes_of(
        empty_module(spec, config) if spec else empty_control(msgspec.convert(config, ControlSpec))
    )
    if spec and spec.tokenizer:
        found = _zeros(expected.keys() - found.keys(), expected) | dict(found)
    try:
        tensors = match(found, expected, f"{bundle}: {name}")
    except CheckpointError as error:
        raise BundleError(f"{error}; export the bundle again") from error
    return NetworkWeights(spec, config, LazyTensors(tensors, name))


def _zeros(names: set[str], shapes: Mapping[str, Shape]) -> dict[str, LazyTensor]:
    """For the part of a text encoder that its graph leaves out, since no output depends on it."""
    return {name: held(torch.zeros(1).expand(shapes[name])) for name in names}
