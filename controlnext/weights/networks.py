"""Networks on the meta device, and the strict match of tensors to them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import PretrainedConfig

from controlnext.errors import CheckpointError, first_line
from controlnext.families import Network
from controlnext.families.graph_spec import CLASS
from controlnext.lora_names import listing
from controlnext.weights.config_check import check_network
from controlnext.weights.config_rules import with_numbers
from controlnext.weights.lazy import LazyTensor

Shape = tuple[int, ...]

# keys about the machine or the libraries that wrote a configuration
_VOLATILE = {"dtype", "torch_dtype", "transformers_version"}

# other names of the same tensors, in other releases of the libraries or as second names
_RENAMED = (
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"^encoder\.embed_tokens\."), "shared."),
    (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
)

# written by some releases, read by no release: positions 0, 1, 2 ..., and CLIP's temperature
_HARMLESS = re.compile(r"(^|\.)(position_ids|logit_scale)$")


def empty_module(network: Network, config: Mapping[str, Any]) -> Any:
    """Return the network, in eval mode, with parameters on the meta device and computed buffers in memory.

    Raises :class:`CheckpointError` for a configuration that the network's class rejects.
    """
    cls = getattr(importlib.import_module(network.library), network.cls)
    try:
        with init_empty_weights():
            if network.library == "diffusers":
                # diffusers warns of any other key, every time
                known = inspect.signature(cls.__init__).parameters
                taken = {key: v for key, v in config.items() if key in known or key.startswith("_")}
                module = cls.from_config(taken)
            else:
                module = cls(cls.config_class.from_dict(dict(config)))
    except Exception as error:  # each library has its own ways to refuse a damaged configuration
        raise CheckpointError(
            f"the configuration of {network.folder} does not make a {network.cls}: {first_line(error)}"
        ) from error
    return module.eval().requires_grad_(False)


def complete_config(network: Network, config: Mapping[str, Any], warn: bool = False) -> dict[str, Any]:
    """Return the configuration with all defaults filled in, without paths and library versions.

    ``warn`` of unknown keys if that was not done before. Raises :class:`CheckpointError` for a configuration
    of another class or family, and for settings that the network's graphs do not support.
    """
    config = with_numbers(network.cls, config)
    cls = config.get(CLASS, network.cls)
    if cls != network.cls:
        raise CheckpointError(f"its {network.folder} is {cls}, expected {network.cls}")
    _check_family(network, {key: config[key] for key in network.required if key in config})
    check_network(network, config, warn=warn)
    module = empty_module(network, config)
    if network.library == "diffusers":
        full = json.loads(module.to_json_string())
    else:
        full = json.loads(module.config.to_json_string(use_diff=False))
        # unchanged defaults that every configuration has are not about the network
        general = json.loads(PretrainedConfig().to_json_string(use_diff=False))
        full = {key: value for key, value in full.items() if key not in general or value != general[key]}
    _check_family(network, {key: full.get(key) for key in network.required})
    _check_read(network, full)
    return {key: value for key, value in public(full).items() if key not in _VOLATILE}


def _check_family(network: Network, found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if not network.accepts(key, value):
            wanted = network.required[key]
            several = " or ".join(map(str, sorted(wanted))) if isinstance(wanted, frozenset) else wanted
            raise CheckpointError(
                f"its {network.folder} is of another family: {key} is {value}, expected {several}"
            )


def _check_read(network: Network, found: Mapping[str, Any]) -> None:
    for key, accepted in network.read.items():
        value = found.get(key)
        if not accepted.takes(value):
            raise CheckpointError(
                f"its {network.folder} has {key}={value!r}, where this family reads {accepted}; write"
                f" that into {network.folder}/config.json, or give a base of this family"
            )


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without private entries, which name paths and versions; the class stays."""
    return {key: value for key, value in config.items() if not key.startswith("_") or key == CLASS}


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    """Return the shape of every tensor of the state dict, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def computed_tensors(module: nn.Module) -> dict[str, LazyTensor]:
    """Return the tensors of the state dict that are computed from the configuration, such as fixed
    embeddings."""
    return {
        name: LazyTensor.from_tensor(tensor)
        for name, tensor in module.state_dict().items()
        if not tensor.is_meta
    }


def match(found: Mapping[str, LazyTensor], expected: Mapping[str, Shape], what: str) -> dict[str, LazyTensor]:
    """Check every name and shape; return the tensors of ``found`` with the expected names, in their order.

    Raises :class:`CheckpointError` listing missing, unexpected and mis-shaped tensors.
    """
    known = {canonical(name) for name in expected}
    unexpected = [name for name in found if canonical(name) not in known and not _HARMLESS.search(name)]
    by_canonical = {canonical(name): tensor for name, tensor in found.items()}
    named = {
        name: _fit(found.get(name) or by_canonical[canonical(name)], shape)
        for name, shape in expected.items()
        if canonical(name) in by_canonical
    }
    missing = [name for name in expected if name not in named]
    misshaped = [
        f"{name} {list(tensor.shape)} for {list(expected[name])}"
        for name, tensor in named.items()
        if tensor.shape != expected[name]
    ]
    problems = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    if any(problems.values()):
        raise CheckpointError(f"{what} does not fit: {listing(problems)}")
    return {name: named[name] for name in expected}


def named_today(found: Iterable[str], expected: Iterable[str]) -> bool:
    """Return whether every expected tensor is found under a name that some release of the libraries uses."""
    return {canonical(name) for name in expected} <= {canonical(name) for name in found}


def canonical(name: str) -> str:
    """Return the name of a tensor in a form that is the same for every release of the libraries."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _fit(tensor: LazyTensor, shape: Shape) -> LazyTensor:
    """Reshape a linear layer that was stored as a 1 x 1 convolution to a matrix, and the reverse."""
    both = {*tensor.shape[2:], *shape[2:]}
    if tensor.shape[:2] == shape[:2] and {len(tensor.shape), len(shape)} == {2, 4} and both == {1}:
        return tensor.map(lambda value: value.reshape(shape))
    return tensor
