"""Reading the checkpoint back from a bundle, whose graphs store every tensor under its state-dict name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from controlnext.bundle.format import MODEL, check_file, read_json, read_text
from controlnext.bundle.manifest import ImagePrompt, Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, CheckpointError
from controlnext.families import ControlSpec, Network, get_family
from controlnext.image_prompts import numbered_adapters
from controlnext.tensor_spec import numbered_controls
from controlnext.weights.checkpoint import Checkpoint, NetworkWeights
from controlnext.weights.control import empty_control
from controlnext.weights.graphs import read_graph
from controlnext.weights.ip_adapter import AdapterWeights, adapter_spec
from controlnext.weights.lazy import LazyTensor, LazyTensors
from controlnext.weights.networks import Shape, canonical, empty_module, match, shapes_of
from controlnext.weights.shipped import SCHEDULER

SCALE, TRANSPOSED = ".scale", ".transposed"
"""Suffixes of the name of an int8 weight: of its scales, and of a weight that is stored transposed."""
# prefixes of a graph's own network's initializers; those of a control module or IP-Adapter have its name
_OWN = ("network", "denoiser")


def bundle_checkpoint(bundle: Path) -> Checkpoint:
    """Return the checkpoint that ``bundle`` was exported from, in the bundle's precision; tensors are read
    lazily.

    Raises :class:`BundleError` for a bundle that is incomplete or damaged.
    """
    manifest = read_manifest(bundle)
    for name in manifest.files:
        check_file(bundle, manifest, name)
    family = get_family(manifest.family)
    known = family.known_networks
    count = len(manifest.configs.keys() - known.keys())
    controls = [control.network for control in numbered_controls(count)]
    adapters = manifest.graphs[family.denoiser].adapters if family.denoiser in manifest.graphs else []
    prompted = [adapter.network for adapter in numbered_adapters(len(adapters))]
    found = _initializers(bundle, manifest, [*controls, *prompted])
    names = [name for name in known if name in manifest.configs] + controls
    networks = {
        name: _network(bundle, name, known.get(name), manifest.configs[name], found[name]) for name in names
    }
    tokenizers = sorted({network.spec.tokenizer for network in networks.values() if network.spec} - {""})
    return Checkpoint(
        family=family,
        variant=family.variant(manifest.variant),
        networks=networks,
        tokenizers={name: read_text(bundle / name / "tokenizer.json") for name in tokenizers},
        scheduler=read_json(bundle / SCHEDULER),
        options=manifest.options,
        sources=manifest.sources,
        random=any(source.role == "random" for source in manifest.sources),
        settings=manifest.scheduler,
        clip_skip=manifest.clip_skip,
        adapters=[
            _adapter(bundle, name, entry, found[name]) for name, entry in zip(prompted, adapters, strict=True)
        ],
    )


def _adapter(bundle: Path, name: str, entry: ImagePrompt, found: Mapping[str, LazyTensor]) -> AdapterWeights:
    try:
        spec = adapter_spec(found, f"{bundle}: {name}")
    except CheckpointError as error:
        raise BundleError(f"{error}; export the bundle again", argument="bundle") from error
    fitted = replace(spec, embedding=tuple(entry.embedding))
    return AdapterWeights(fitted, LazyTensors(found, name))


def _initializers(
    bundle: Path, manifest: Manifest, others: Collection[str]
) -> dict[str, dict[str, LazyTensor]]:
    """Return the tensors of every network by state-dict name, collected from all graphs that hold some."""
    found: dict[str, dict[str, LazyTensor]] = {name: {} for name in (*manifest.configs, *others)}
    for directory, graph in manifest.graphs.items():
        model = read_graph(bundle / directory / MODEL)
        for name, lazy in _weights(model.graph.initializers):
            prefix, _, tensor = name.partition(".")
            if prefix in _OWN or prefix in others:
                found[graph.network if prefix in _OWN else prefix][tensor] = lazy
    return found


def _weights(values: Mapping[str, ir.Value]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield the parameters among a graph's initializers, int8 ones dequantized."""
    tensors = {name: value.const_value for name, value in values.items() if value.const_value is not None}
    for name, tensor in tensors.items():
        quantized = tensors.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
        # tensors that a pass adds to a node have the node's name, which contains a slash
        if "/" in name or (quantized is not None and quantized.dtype == ir.DataType.INT8):
            continue
        shape = tuple(tensor.shape.numpy())
        if tensor.dtype != ir.DataType.INT8:
            yield name, LazyTensor(shape, partial(_read, tensor))
        else:
            transposed = name.endswith(TRANSPOSED)
            read = partial(_dequantize, tensor, tensors[name + SCALE], transposed)
            yield name.removesuffix(TRANSPOSED), LazyTensor(shape[::-1] if transposed else shape, read)


def _dequantize(tensor: ir.TensorProtocol, scales: ir.TensorProtocol, transposed: bool) -> Tensor:
    levels, steps = _read(tensor).to(torch.float32), _read(scales).to(torch.float32)
    if transposed:
        levels = levels.T
    return (levels * steps.reshape(-1, *[1] * (levels.ndim - 1))).contiguous()


def _read(tensor: ir.TensorProtocol) -> Tensor:
    return torch.from_numpy(np.array(tensor.numpy()))


def _network(
    bundle: Path, name: str, spec: Network | None, config: dict[str, Any], found: Mapping[str, LazyTensor]
) -> NetworkWeights:
    spec = spec and spec.of(config)
    expected = shapes_of(
        empty_module(spec, config) if spec else empty_control(msgspec.convert(config, ControlSpec))
    )
    if spec and found:
        # a tensor with two names is in the graph under one of them
        known = {canonical(tensor) for tensor in found}
        absent = {tensor for tensor in expected if canonical(tensor) not in known}
        found = _zeros(absent, expected) | dict(found)
    try:
        tensors = match(found, expected, f"{bundle}: {name}")
    except CheckpointError as error:
        raise BundleError(f"{error}; export the bundle again", argument="bundle") from error
    return NetworkWeights(spec, config, LazyTensors(tensors, name))


def _zeros(names: set[str], shapes: Mapping[str, Shape]) -> dict[str, LazyTensor]:
    """Return zeros for tensors that a network's graphs omit because no output depends on them, such as a text
    encoder's last layer."""
    return {name: LazyTensor.from_tensor(torch.zeros(()).expand(shapes[name])) for name in names}
