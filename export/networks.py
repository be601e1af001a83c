"""Adapters that give a PyTorch network the signature of its graph: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.errors import InputError
from controlnext.injection import CrossNormalization, inject
from controlnext.registry import GraphSpec, Injection


class FusedDenoiser(nn.Module):
    """The stock denoiser with the control module and its injection in one forward pass.

    Takes the tensors of ``spec.inputs`` in that order. The control picture may have batch 1 while the
    latents have a guided batch: the control module then runs once and its feature is repeated.
    """

    def __init__(
        self, denoiser: nn.Module, control: nn.Module, injection: Injection, spec: GraphSpec
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.control = control
        self.cross_normalization = CrossNormalization(injection)
        self.spec = spec

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = dict(zip((s.name for s in self.spec.inputs), tensors, strict=True))
        image, strength = inputs.pop("control_image"), inputs.pop("control_scale")
        timestep = inputs["timestep"]
        # gathers instead of slices and broadcasts: they leave the two batch sizes independent in the trace
        rows = torch.arange(timestep.shape[0]).clamp(max=image.shape[0] - 1)
        feature = self.control(image, timestep.index_select(0, torch.arange(image.shape[0])))
        arguments = _arguments(self.spec, inputs)
        with inject(self.denoiser, self.cross_normalization, feature.index_select(0, rows), strength):
            return self.denoiser(**arguments, return_dict=False)[0]


def _arguments(spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of the denoiser; ``"group.name"`` puts a tensor into a dictionary argument."""
    arguments: dict[str, Any] = {}
    for tensor in spec.inputs:
        if tensor.name in inputs:
            group, dot, name = (tensor.argument or tensor.name).partition(".")
            if dot:
                arguments.setdefault(group, {})[name] = inputs[tensor.name]
            else:
                arguments[group] = inputs[tensor.name]
    return arguments


class ClipPenultimate(nn.Module):
    """CLIP text encoder: token ids -> hidden states before the last layer, [pooled projection]."""

    def __init__(self, network: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.network = network
        self.pooled = pooled

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        output = self.network(input_ids, output_hidden_states=True)
        hidden = output.hidden_states[-2]
        return (hidden, output.text_embeds) if self.pooled else (hidden,)


class VaeDecoder(nn.Module):
    """Latents (already divided by the scaling factor) -> picture in about [-1, 1]."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.network.decode(latent_sample, return_dict=False)[0]


class VaeEncoder(nn.Module):
    """Picture in [-1, 1] -> mean and logarithm of the variance of its latents, stacked on the channels."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> Tensor:
        return self.network.encode(sample).latent_dist.parameters


def wrap(spec: GraphSpec, network: nn.Module, control: nn.Module, injection: Injection) -> nn.Module:
    """The module to trace for the graph ``spec``."""
    match spec.wrapper:
        case "denoiser":
            return FusedDenoiser(network, control, injection, spec).eval()
        case "clip_penultimate":
            return ClipPenultimate(network, pooled=False).eval()
        case "clip_penultimate_pooled":
            return ClipPenultimate(network, pooled=True).eval()
        case "vae_decoder":
            return VaeDecoder(network).eval()
        case "vae_encoder":
            return VaeEncoder(network).eval()
    raise InputError(f"graph {spec.folder}: unknown adapter {spec.wrapper!r}")
