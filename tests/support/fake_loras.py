"""LoRAs for the layers that a fake bundle with room says it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from support.fake_bundle import LORA_LAYERS

NETWORKS = ("unet", "text_encoder", "text_encoder_2")


def write_fake_lora(file: Path, seed: int, rank: int = 2, networks: tuple[str, ...] = NETWORKS) -> Path:
    """Write a LoRA of random numbers, named as peft does, and return its file."""
    random = np.random.RandomState(seed)
    tensors = {}
    for network in networks:
        for layer in LORA_LAYERS:
            width, height = layer.down[1] - layer.down[0], layer.up[1] - layer.up[0]
            kernel = layer.kernel if layer.kernel != (1, 1) else ()
            channels = width // (layer.kernel[0] * layer.kernel[1])
            name = f"{network}.{layer.name}"
            down, up = (rank, channels, *kernel), (height, rank, *[1] * len(kernel))
            tensors[f"{name}.lora_A.weight"] = random.standard_normal(down).astype(np.float32) / 8
            tensors[f"{name}.lora_B.weight"] = random.standard_normal(up).astype(np.float32) / 8
    save_file(tensors, file)
    return file
