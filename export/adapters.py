"""Adapters that give a PyTorch network the signature of its graph: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.bundle.manifest import LoraRoom
from controlnext.families import CachedFeature, GraphSpec
from controlnext.image_prompts import SCALE, numbered_adapters
from controlnext.models.cross_normalization import Control, CrossNormalization, inject
from controlnext.models.image_prompt import AdapterPrompt, image_prompts
from controlnext.models.lora import lora_branches
from controlnext.models.step_cache import cut
from controlnext.tensor_spec import LORA_INPUTS, ControlInputs, numbered_controls


class FusedDenoiser(nn.Module):
    """The stock denoiser with its control modules and their injection in one forward pass.

    The inputs are the tensors of ``spec.inputs`` in that order. A control image may have batch 1 while the
    latents have a guided batch: its control module then runs once and its feature is repeated. Further
    outputs are the features ``cached``. With ``room`` for LoRAs these are inputs too, with ``adapters`` image
    prompts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        controls: Sequence[nn.Module],
        normalization: CrossNormalization,
        spec: GraphSpec,
        cached: Sequence[CachedFeature] = (),
        room: LoraRoom | None = None,
        adapters: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.denoiser, self.cached, self.room = denoiser, tuple(cached), room
        self.controls = numbered_controls(len(controls))
        for names, control in zip(self.controls, controls, strict=True):
            self.add_module(names.network, control)
        self.adapters = numbered_adapters(len(adapters))
        for one, adapter in zip(self.adapters, adapters, strict=True):
            self.add_module(one.network, adapter)
        self.cross_normalization = normalization
        self.spec = spec

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the predicted noise, and after it the cached features."""
        inputs = dict(zip((s.name for s in self.spec.inputs), tensors, strict=True))
        controls = [self._control(inputs, names) for names in self.controls]
        features: dict[str, Tensor] = {}
        loras = tuple(inputs.pop(name) for name in LORA_INPUTS if name in inputs)
        prompts = self._image_prompts(inputs)
        with (
            lora_branches(self.denoiser, self.room, loras),
            # behind the branches of LoRAs, which queries have too
            image_prompts(self.denoiser, prompts),
            inject(self.denoiser, self.cross_normalization, controls),
            cut(self.denoiser, self.cached, features, shallow=False),
        ):
            noise = self.denoiser(**_arguments(self.spec, inputs), return_dict=False)[0]
        return (noise, *(features[one.spec.name] for one in self.cached)) if self.cached else noise

    def _image_prompts(self, inputs: dict[str, Tensor]) -> list[AdapterPrompt]:
        scales = inputs.pop(SCALE).unbind(1) if self.adapters else ()
        return [
            AdapterPrompt(self.get_submodule(one.network), inputs.pop(one.embeds), scale)  # type: ignore[arg-type]
            for one, scale in zip(self.adapters, scales, strict=True)
        ]

    def _control(self, inputs: dict[str, Tensor], names: ControlInputs) -> Control:
        module = self.get_submodule(names.network)
        image, scale = inputs.pop(names.image), inputs.pop(names.scale)
        timestep = inputs["timestep"]
        # gathers instead of slices and broadcasts: they leave the two batch sizes independent in the trace
        device = timestep.device
        rows = torch.arange(timestep.shape[0], device=device).clamp(max=image.shape[0] - 1)
        feature = module(image, timestep.index_select(0, torch.arange(image.shape[0], device=device)))
        if image.ndim == 5:
            frames = image.shape[1]
            feature = feature.unflatten(0, (-1, frames)).index_select(0, rows).flatten(0, 1)
            scale = scale[:, None].expand(-1, frames).flatten()
        else:
            feature = feature.index_select(0, rows)
        return Control(feature, scale, module.scale)  # type: ignore[arg-type]


def _arguments(spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keyword arguments of the denoiser; ``"group.name"`` puts a tensor into a dictionary
    argument, ``"+name"`` adds its channels to an argument before it."""
    arguments: dict[str, Any] = {}
    for tensor in spec.inputs:
        if tensor.name in inputs:
            group, dot, name = (tensor.argument or tensor.name).partition(".")
            if dot:
                arguments.setdefault(group, {})[name] = inputs[tensor.name]
            elif group.startswith("+"):
                arguments[group[1:]] = torch.cat([arguments[group[1:]], inputs[tensor.name]], dim=1)
            else:
                arguments[group] = inputs[tensor.name]
    return arguments


class TextEncoder(nn.Module):
    """Token ids -> hidden states of the last (``penultimate``: the one before) layer, [pooled projection],
    with ``clip_skip`` also the hidden states of so many layers before that one."""

    def __init__(
        self,
        network: nn.Module,
        room: LoraRoom | None = None,
        *,
        penultimate: bool = False,
        pooled: bool = False,
        clip_skip: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.room = network, room
        self.penultimate, self.pooled, self.clip_skip = penultimate, pooled, clip_skip

    def forward(self, input_ids: Tensor, *loras: Tensor) -> tuple[Tensor, ...]:
        """Return the hidden states, with ``pooled`` the pooled projection, and with ``clip_skip`` the hidden
        states of the earlier layer."""
        with lora_branches(self.network, self.room, loras):
            output = self.network(input_ids, output_hidden_states=self.penultimate or self.clip_skip > 0)
        hidden = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        pooled = (output.text_embeds,) if self.pooled else ()
        skipped = (self._skipped(output.hidden_states),) if self.clip_skip else ()
        return (hidden, *pooled, *skipped)

    def _skipped(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Return the earlier layer's states, normalized if those of the last layer are, as in diffusers."""
        states = hidden_states[-1 - self.penultimate - self.clip_skip]
        # not all classes and releases of transformers have text_model
        encoder: Any = getattr(self.network, "text_model", self.network)
        return states if self.penultimate else encoder.final_layer_norm(states)


class ImageEncoder(nn.Module):
    """CLIP's normalized pixels -> projected embedding."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the projected embedding."""
        return self.network(pixel_values).image_embeds


class ImagePromptEncoder(nn.Module):
    """CLIP's normalized pixels -> projected embedding, and the hidden states of the layer before the last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what either kind of IP-Adapter reads."""
        output = self.network(pixel_values, output_hidden_states=True)
        return output.image_embeds, output.hidden_states[-2]


class VaeDecoder(nn.Module):
    """Latents (already divided by the scaling factor) -> image in about [-1, 1].

    The batch of a ``temporal`` decoder is the frames of one clip, which it decodes together.
    """

    network: Any

    def __init__(self, network: nn.Module, temporal: bool = False) -> None:
        super().__init__()
        self.network = network
        self.temporal = temporal

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return the decoded image or frames."""
        clip = {"num_frames": latent_sample.shape[0]} if self.temporal else {}
        return self.network.decode(latent_sample, **clip, return_dict=False)[0]


class VaeEncoder(nn.Module):
    """Image in [-1, 1] -> mean and logarithm of the variance of its latents, stacked on the channels."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> Tensor:
        """Return mean and log variance of the latents."""
        return self.network.encode(sample).latent_dist.parameters


class TinyVaeEncoder(nn.Module):
    """Image in [-1, 1] -> its latents, which a tiny VAE gives without a variance."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> Tensor:
        """Return the latents."""
        return self.network.encode(sample).latents


ADAPTERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "text_last": TextEncoder,
        "text_penultimate": partial(TextEncoder, penultimate=True),
        "text_penultimate_pooled": partial(TextEncoder, penultimate=True, pooled=True),
        "image_encoder": ImageEncoder,
        "image_prompt_encoder": ImagePromptEncoder,
        "vae_decoder": VaeDecoder,
        "temporal_vae_decoder": partial(VaeDecoder, temporal=True),
        "vae_encoder": VaeEncoder,
        "tiny_vae_encoder": TinyVaeEncoder,
    }
)
"""The values of ``wrapper`` in the registry, besides ``"denoiser"``."""


def wrap(
    spec: GraphSpec,
    network: nn.Module,
    controls: Sequence[nn.Module],
    normalization: CrossNormalization,
    cached: Sequence[CachedFeature] = (),
    room: LoraRoom | None = None,
    adapters: Sequence[nn.Module] = (),
) -> nn.Module:
    """Return the module of the graph ``spec``, a denoiser's with the features ``cached`` as outputs too.

    ``normalization`` needs a traceable pool (averaging_pool). ``room``: that of a graph which takes LoRAs.
    ``adapters``: a denoiser's IP-Adapters.
    """
    if spec.wrapper == "denoiser":
        return FusedDenoiser(network, controls, normalization, spec, cached, room, adapters).eval()
    skipping = {"clip_skip": spec.clip_skip} if spec.clip_skip else {}
    return ADAPTERS[spec.wrapper](network, *([room] if room else []), **skipping).eval()
