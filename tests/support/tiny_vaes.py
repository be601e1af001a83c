"""Small VAEs of diffusers' AutoencoderTiny, in the layouts in which tiny VAEs are published."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.export import export_bundle
from controlnext.families.parts import TINY_VAE
from support.recipe import fill

if TYPE_CHECKING:
    from controlnext.weights import Checkpoint

SIZES: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (0, 1, 1, 1),
    "num_decoder_blocks": (2, 1, 1, 1),
}


def tiny_vae(channels: int = 4, seed: int = 21, **sizes: Any) -> Any:
    """Return a small tiny VAE for latents of so many ``channels``."""
    return fill(diffusers.AutoencoderTiny(latent_channels=channels, **(sizes or SIZES)), seed).eval()


def save_tiny(vae: Any, directory: Path, **changes: Any) -> Path:
    """Save it as diffusers does, with ``changes`` of its configuration."""
    vae.save_pretrained(directory)
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return directory


def original(vae: Any, half: str) -> dict[str, Tensor]:
    """Return the tensors of its ``"encoder"`` or ``"decoder"`` under the original's names, in which the
    decoder's layer 0 limits the latents."""
    first = {"encoder": 0, "decoder": 1}[half]
    renamed = {}
    for name, tensor in getattr(vae, half).layers.state_dict().items():
        layer, _, rest = name.partition(".")
        renamed[f"{int(layer) + first}.{rest}"] = tensor
    return renamed


def save_originals(vae: Any, directory: Path, suffix: str = ".safetensors", config: bool = True) -> Path:
    """Save it as ``taesd_encoder`` and ``taesd_decoder``, with its configuration beside; return the
    decoder's file."""
    directory.mkdir()
    if config:
        vae.save_config(directory)
    for half in ("encoder", "decoder"):
        file = directory / f"taesd_{half}{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        save(original(vae, half), file)
    return file


def vaes_alone(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same with the graphs of its tiny VAEs alone: others would have to be exported."""
    family = checkpoint.family
    tiny = [name for name, network in family.known_networks.items() if TINY_VAE in network.classes]
    graphs = tuple(graph for graph in family.graphs if graph.network in tiny)
    return replace(checkpoint, family=replace(family, graphs=graphs))


def with_vaes(plain: Path, checkpoint: Checkpoint, directory: Path) -> Path:
    """Return the bundle of ``checkpoint``, of which ``plain`` has all graphs but those of its VAEs: only
    these are exported."""
    manifest, vaes = (
        read_manifest(plain),
        export_bundle(vaes_alone(checkpoint), "fp32", directory.with_name("vaes")),
    )
    shutil.copytree(plain, directory)
    networks = {graph.network for graph in vaes.graphs.values()}
    for name in vaes.graphs:
        shutil.copytree(directory.with_name("vaes") / name, directory / name, dirs_exist_ok=True)
    merged = msgspec.structs.replace(
        manifest,
        graphs={**manifest.graphs, **vaes.graphs},
        configs={**manifest.configs, **{name: vaes.configs[name] for name in networks}},
        files=list_files(directory),
    )
    write_manifest(directory, merged)
    return directory
