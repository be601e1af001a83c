"""LoRAs fused into the base's tensors: diffusers converts their names, peft computes their layers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import msgspec
import torch
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from torch import Tensor, nn

from controlnext.bundle.manifest import Source
from controlnext.errors import CheckpointError, InputError, first_line
from controlnext.families import Family, Network
from controlnext.lora_names import METADATA, STRENGTH, listing, matched, split_scale
from controlnext.weights.base import Base
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import (
    LazyTensor,
    LazyTensors,
    is_safetensors,
    is_weight_file,
    read_file,
)
from controlnext.weights.networks import canonical, empty_module
from controlnext.weights.parts import Part
from controlnext.weights.weight_source import WeightSource, choose_weights, resolve

log = logging.getLogger(__name__)

_STEMS = ("pytorch_lora_weights",)
_ADAPTER = "lora"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_Pair = tuple[Tensor, Tensor]
"""down (rank, in, ...) and up (out, rank, ...): up @ down is added to a weight (out, in, ...)."""


def apply_loras(family: Family, base: Base, loras: Sequence[str]) -> list[Source]:
    """Add LoRAs, each ``PATH[:SCALE]``, to the tensors of ``base`` that they were trained for.

    ``PATH``: a file, a directory with one LoRA or a hub id; ``SCALE``: a finite number, 1 by default. The
    sums are computed on access, in float32; the tensors of a text encoder that ``base`` does not have are
    ignored with a warning. Raises :class:`InputError` for a scale that is not a finite number and for a
    family whose pipeline does not support LoRAs, :class:`CheckpointError` for a file that is not a plain LoRA
    or does not fit.
    """
    if loras:
        check_takes_loras(family, "lora")
    return [_apply(family, base, *split_scale(given)) for given in loras]


def check_takes_loras(family: Family, argument: str) -> None:
    """Raise :class:`InputError`, which blames ``argument``, for a family whose pipeline has no LoRAs."""
    if not hasattr(_pipeline(family), "lora_state_dict"):
        raise InputError(
            f"LoRAs are not supported by {family.name}: diffusers' {family.pipeline_class} has none; remove"
            f" `{argument}`",
            argument=argument,
        )


def _pipeline(family: Family) -> Any:
    return getattr(diffusers, family.pipeline_class)


def _apply(family: Family, base: Base, given: str, scale: float) -> Source:
    weight_source = resolve(given, choose_lora)
    file = _weight_file(weight_source)
    found = read_file(file)
    settings = _settings(file)
    for name, matrices in _by_network(
        family, base, _matrices(found, weight_source.name), weight_source.name
    ).items():
        if name in base.parts:
            network, part = family.networks[name], base.parts[name]
            pairs = _pairs(network, part, matrices, f"{weight_source.name} does not fit the base's {name}")
            strength = {key: settings[f"{name}.{key}"] for key in STRENGTH if f"{name}.{key}" in settings}
            _fuse(network, part, pairs, strength, scale)
        else:
            log.warning("%s: its tensors for %s are left out; the base has none", weight_source.name, name)
    source = weight_source.source("lora", file)
    detail = ", ".join(filter(None, (source.detail, f"scale {scale:g}")))
    return msgspec.structs.replace(source, detail=detail)


def choose_lora(names: Sequence[str]) -> list[str]:
    """Return the LoRA among the files of a directory: the one with diffusers' name, or the only one."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if is_weight_file(name)]
    files = [name for name in weights if is_safetensors(name)] or weights
    return choose_weights(top, _STEMS) or (files if len(files) == 1 else [])


def _weight_file(weight_source: WeightSource) -> Path:
    if weight_source.path.is_file():
        return weight_source.path
    names = sorted(path.name for path in weight_source.path.iterdir())
    chosen = choose_lora(names)
    if not chosen:
        weights = [name for name in names if is_weight_file(name)]
        raise CheckpointError(
            f"{weight_source.path} has no {_STEMS[0]}.safetensors and not exactly one weight file, but"
            f" {', '.join(weights[:8]) or 'none'}; give the LoRA's file itself"
        )
    return weight_source.path / chosen[0]


def _settings(file: Path) -> dict[str, Any]:
    """Read peft's settings that diffusers' trainers write into the file, by names like
    ``"unet.lora_alpha"``."""
    if not is_safetensors(file.name):
        return {}
    with safe_open(str(file), "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA, "{}")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its {METADATA} is damaged; get it again") from error


def _matrices(found: Mapping[str, LazyTensor], what: str) -> dict[str, Tensor]:
    """Read all matrices under the file's own names; an ``alpha`` is multiplied into the second matrix of its
    layer.

    diffusers would accept the alphas too, but loses them if an attention's layers have different ones.
    """
    shapes = {name: tensor.shape for name, tensor in found.items()}
    matches = matched(shapes, what, lambda: f"it looks like {looks_like(found)}")
    matrices = {}
    # a sum with the base would not show whose NaN it is
    read = LazyTensors(found, what)
    for name, match in matches.items():
        matrices[name] = tensor = read[name]
        alpha = f"{match[1]}.alpha"
        if alpha in found and not match[2]:
            matrices[name] = tensor.float() * (float(read[alpha]) / tensor.shape[1])
    return matrices


def _by_network(
    family: Family, base: Base, matrices: dict[str, Tensor], what: str
) -> dict[str, dict[str, Tensor]]:
    """Return the matrices of each network, with diffusers' names."""
    config = SimpleNamespace(**base.parts[family.denoiser].config)
    try:
        # some pipelines return alphas after the state dict
        state, *_ = _pipeline(family).lora_state_dict(matrices, unet_config=config, return_lora_metadata=True)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{what} does not fit {family.name}: {first_line(error)[:200]}; give a LoRA of {family.name}"
        ) from error
    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        network, _, inside = name.partition(".")
        networks.setdefault(network, {})[inside] = tensor
    unknown = [name for name in state if name.partition(".")[0] not in family.networks]
    if unknown:
        raise CheckpointError(
            f"{what} does not fit {family.name}: {listing({'of other networks': unknown})}; give a LoRA of"
            f" {family.name} as diffusers or kohya's sd-scripts save it"
        )
    return networks


def _pairs(network: Network, part: Part, matrices: dict[str, Tensor], what: str) -> dict[str, _Pair]:
    """Return the two matrices of every layer, by the layer's name in the network."""
    known = {canonical(name): name for name in part.tensors}
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in _peft_names(network, matrices, what).items():
        weight = known.get(canonical(name.replace(_DOWN, ".weight").replace(_UP, ".weight")))
        if weight is None:
            unknown.append(name)
        else:
            found.setdefault(weight.removesuffix(".weight"), {})[name[-len(_DOWN) :]] = tensor
    pairs = {layer: (both[_DOWN], both[_UP]) for layer, both in found.items()}
    misshaped = []
    for layer, (down, up) in pairs.items():
        shape = part.tensors[f"{layer}.weight"].shape
        fitting = (shape[0], down.shape[0], *[1] * len(shape[2:]))
        if up.shape != fitting or down.shape[1:] != shape[1:]:
            misshaped.append(f"{layer} {list(up.shape)} x {list(down.shape)} for {list(shape)}")
    if unknown or misshaped:
        problems = listing({"unknown": unknown, "mis-shaped": misshaped})
        raise CheckpointError(f"{what}: {problems}; give a LoRA that was trained for this architecture")
    return pairs


def _peft_names(network: Network, matrices: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    if network.library == "diffusers":
        return convert_unet_state_dict_to_peft(matrices)
    if any(name.endswith(_DOWN) for name in matrices):
        return matrices
    try:
        return convert_state_dict_to_peft(convert_state_dict_to_diffusers(matrices))
    except ValueError as error:
        raise CheckpointError(
            f"{what}: {listing({'unknown': matrices})}; give a LoRA of this family"
        ) from error


def _fuse(
    network: Network, part: Part, pairs: Mapping[str, _Pair], strength: Mapping[str, Any], scale: float
) -> None:
    """Add scale * strength * up @ down to the weight of every layer."""
    module = _adapted(empty_module(network, part.config), list(pairs), strength)
    summed = {}
    for layer, (down, up) in pairs.items():
        adapter = module.get_submodule(layer)
        adapter.lora_A[_ADAPTER].weight = nn.Parameter(down.float(), requires_grad=False)
        adapter.lora_B[_ADAPTER].weight = nn.Parameter(up.float(), requires_grad=False)
        adapter.scale_layer(scale)
        name = f"{layer}.weight"
        summed[name] = _sum(part.tensors[name], adapter)
    part.tensors = part.tensors | summed


def _adapted(module: nn.Module, layers: list[str], strength: Mapping[str, Any]) -> Any:
    """Return ``module`` on the meta device with peft's layers in it; without settings their strength is 1."""
    names = {layer + _DOWN: torch.empty(0) for layer in layers}
    try:
        config = LoraConfig(target_modules=layers, **strength)
        return inject_adapter_in_model(config, module, _ADAPTER, low_cpu_mem_usage=True, state_dict=names)
    except (ValueError, TypeError, AttributeError, ArithmeticError, re.error) as error:
        raise CheckpointError(
            f"peft refuses the LoRA's settings {dict(strength)}: {first_line(error)}; get the file again"
        ) from error


def _sum(base: LazyTensor, adapter: Any) -> LazyTensor:
    return LazyTensor(base.shape, lambda: base.read().float() + adapter.get_delta_weight(_ADAPTER))
