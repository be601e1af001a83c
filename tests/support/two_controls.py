"""Models with two controls, and the stock UNet to which both are added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.families import get_family
from controlnext.weights import Checkpoint, load_checkpoint
from support.recipe import control_tensors, rand

Arrays = dict[str, np.ndarray]


class Published(NamedTuple):
    """The steps of a variant's published code for a control feature."""

    order: str
    eps: float
    gain: float


DOWN = Published("pool, normalize", 1e-12, 1.0)
V2 = Published("normalize, pool", 1e-5, 0.2)


def two_controls(variant: str, folder: Path, control: Path) -> Checkpoint:
    """The tiny model with its own control and another of other weights."""
    second = folder / "second.safetensors"
    save_file(control_tensors(variant, 32, 77), second)
    family = get_family(variant)
    return load_checkpoint(family, base=control.parent / "base", control=[control, second])


def denoiser_only(checkpoint: Checkpoint) -> Checkpoint:
    """An export of it has no other graph."""
    family = checkpoint.family
    graphs = tuple(graph for graph in family.graphs if graph.name == family.denoiser)
    return replace(checkpoint, family=replace(family, graphs=graphs))


def graph_feed(bundle: Path, batch: int, images: tuple[int, int], **sizes: int) -> Arrays:
    """Seeded inputs of the denoiser's graph; ``images``: the batch of each control's."""
    manifest = read_manifest(bundle)
    specs = manifest.graphs[get_family(manifest.family).denoiser].inputs
    batches = dict(zip(("control_batch", "control_batch_2"), images, strict=True))
    shapes = {s.name: s.spec().shape_at({**sizes, "batch": batch, **batches}) for s in specs}
    feed = {
        name: rand(seed, *shape, kind="uniform" if name.startswith("control") else "normal")
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return {**feed, "timestep": np.full(batch, 321, np.float32)}


def run_graph(bundle: Path, feed: Arrays) -> np.ndarray:
    manifest = read_manifest(bundle)
    denoiser = get_family(manifest.family).denoiser
    with open_engine(bundle, manifest, denoiser, cache=False) as engine:
        return engine.run(feed)["noise_pred"]


@torch.no_grad()
def run_stock(unet: nn.Module, controls: list[nn.Module], feed: Arrays, published: Published) -> np.ndarray:
    """The stock UNet; onto what its first down block gives, every control is added after being aligned to it
    on its own. What the block hands to the other side of the UNet stays as it is."""
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    given = [
        (module, inputs.pop(f"control_image{suffix}"), inputs.pop(f"control_scale{suffix}"))
        for module, suffix in zip(controls, ("", "_2"), strict=True)
    ]

    def add(_module: nn.Module, _args: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *skips = output
        total = x
        for module, image, scale in given:
            rows = len(inputs["timestep"])
            c = module(image.expand(rows, *image.shape[1:]), inputs["timestep"])
            strength = scale.repeat_interleave(len(x) // rows).reshape(-1, 1, 1, 1)
            total = total + published.gain * strength * aligned(c, x, published)
        return (total, *skips)

    handle = unet.get_submodule("down_blocks.0").register_forward_hook(add)
    try:
        return unet(**inputs).sample.numpy()
    finally:
        handle.remove()


def aligned(c: Tensor, x: Tensor, published: Published) -> Tensor:
    if published.order.startswith("pool"):
        c = F.adaptive_avg_pool2d(c, x.shape[-2:])
    mean_c, mean_x = (t.mean((1, 2, 3), keepdim=True) for t in (c, x))
    std_c, std_x = (t.std((1, 2, 3), keepdim=True) for t in (c, x))
    c = (c - mean_c) / (std_c + published.eps) * std_x + mean_x
    return F.adaptive_avg_pool2d(c, x.shape[-2:])


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative L2."""
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
