"""Tiny VAEs in files of their own, under the names of the original and of diffusers.

The original (https://github.com/madebyollin/taesd) numbers the layers of an encoder and of a decoder, each in
a file: ``taesd_encoder.safetensors`` and ``taesd_decoder.safetensors``, or ``.pth``. ComfyUI joins them under
the prefixes ``taesd_encoder.`` and ``taesd_decoder.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from controlnext.weights.lazy import LazyTensor

ENCODER, DECODER = "encoder", "decoder"
_LAYER = re.compile(
    r"(?:(?:taesd_)?(encoder|decoder)\.)?(?:layers\.)?(\d+)\.((?:conv\.\d+\.)?(?:weight|bias))"
)
_FIRST = 1
"""The first layer of a decoder with weights in the original, where layer 0 limits the latents."""
_OF_COMFYUI = {"vae_scale", "vae_shift"}
"""The scaling of the full VAE's latents, which a tiny VAE takes as the denoiser has them."""


def is_tiny(found: Mapping[str, LazyTensor]) -> bool:
    """Return whether these are the tensors of a tiny VAE, or of its encoder or decoder alone."""
    named = [name for name in found if name not in _OF_COMFYUI]
    return bool(named) and all(map(_LAYER.fullmatch, named))


def from_tiny(found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors of a tiny VAE with diffusers' names."""
    alone = ENCODER if "0.weight" in found else DECODER
    renamed = {}
    for name, tensor in found.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            continue
        side, layer = match[1] or alone, int(match[2])
        if ".layers." not in name and side == DECODER:
            layer -= _FIRST
        renamed[f"{side}.layers.{layer}.{match[3]}"] = tensor
    return renamed


def counterpart(file: str) -> str:
    """Return the name of the encoder's file that belongs to a decoder's, and the reverse; empty for other
    names."""
    for one, other in ((DECODER, ENCODER), (ENCODER, DECODER)):
        if one in file:
            return file.replace(one, other)
    return ""
