"""Training data in memory: drawings with their images, outlines and latents."""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool

import draw
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

ENCODING_BATCH = 100


@dataclass(frozen=True)
class Drawings:
    """The first `len(self)` training drawings with their coverages and outlines, which are slow to draw."""

    drawings: list[draw.Drawing]
    coverages: np.ndarray
    outline_maps: np.ndarray

    def __len__(self) -> int:
        return len(self.drawings)

    def images(self, indices: np.ndarray) -> Tensor:
        """Return images (B, 3, H, W) in [-1, 1]."""
        cover = torch.from_numpy(self.coverages[indices]).float()[:, None] / 255
        colours = _colours([self.drawings[index].colour for index in indices])
        backgrounds = _colours([self.drawings[index].background for index in indices])
        return (cover * colours + (1 - cover) * backgrounds).contiguous(memory_format=torch.channels_last)

    def outlines(self, indices: np.ndarray) -> Tensor:
        """Return control images (B, 3, H, W) in [0, 1]."""
        outlines = torch.from_numpy(self.outline_maps[indices]).float()[:, None] / 255
        return outlines.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def prompts(self, indices: np.ndarray) -> list[str]:
        """Return the prompts of drawings."""
        return [draw.prompt(self.drawings[index]) for index in indices]

    def batches(self, size: int, count: int, seed: int, per_prompt: int = 1) -> Iterator[np.ndarray]:
        """Yield `count` random batches of indices, with the drawings of one prompt next to each other."""
        rng = np.random.default_rng(seed)
        _, groups, sizes = np.unique(
            self.prompts(np.arange(len(self))), return_inverse=True, return_counts=True
        )
        members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
        for _ in range(count):
            chosen = rng.integers(len(members), size=size // per_prompt)
            yield np.concatenate([rng.choice(members[group], per_prompt) for group in chosen])


def training_drawings(count: int) -> Drawings:
    """Draw the first `count` training drawings."""
    drawings = [draw.training_drawing(seed) for seed in range(count)]
    with Pool() as pool:
        coverages = np.stack(pool.map(draw.coverage, drawings, chunksize=256))
        outline_maps = np.stack(pool.map(draw.outline_map, drawings, chunksize=256))
    return Drawings(drawings, coverages, outline_maps)


@torch.no_grad()
def encode(vae: AutoencoderKL, data: Drawings) -> Tensor:
    """Encode all images to scaled latents (N, 4, H/8, W/8)."""
    chunks = np.array_split(np.arange(len(data)), max(len(data) // ENCODING_BATCH, 1))
    means = [vae.encode(data.images(chunk)).latent_dist.mean for chunk in chunks]
    return torch.cat(means).contiguous() * vae.config.scaling_factor


def _colours(names: list[str]) -> Tensor:
    return torch.tensor([draw.PALETTE[name] for name in names])[:, :, None, None] / 127.5 - 1
