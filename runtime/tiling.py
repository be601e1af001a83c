"""Decoding in overlapping tiles with diffusers' arithmetic.

The memory of the decoder does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np

from controlnext.errors import InputError
from controlnext.families.parts import TINY_VAE
from controlnext.types import FloatArray


@dataclass(frozen=True)
class Tiles:
    """Square tiles; each shares a quarter with the next.

    Attributes:
        size: height and width of a tile in latents, a multiple of 4.
        factor: pixels for each latent.
    """

    size: int
    factor: int

    @classmethod
    def of(cls, sample_size: object, factor: int) -> Self:
        """Return tiles of the size that a VAE was made for, its ``sample_size`` in pixels.

        Raises:
            InputError: a quarter of a tile is not an integer number of latents.
        """
        if not isinstance(sample_size, int) or sample_size < 1 or sample_size % (4 * factor):
            raise InputError(
                f"vae_tiling was given, but the sample_size of this VAE is {sample_size!r}; tiles need a"
                f" multiple of {4 * factor}; remove `vae_tiling`",
                argument="vae_tiling",
            )
        return cls(sample_size // factor, factor)

    @property
    def stride(self) -> int:
        """The distance from one tile to the next, in latents."""
        return self.size - self.size // 4

    def decode(
        self, decode: Callable[[FloatArray], FloatArray], latents: FloatArray
    ) -> Iterator[tuple[int, int, FloatArray]]:
        """Yield the image of the latents (N, C, h, w) part by part, row by row.

        ``decode`` turns the latents of a tile into samples (N, 3, H, W) float32. Each item is the upper and
        the left edge of a part in pixels, and its samples. Latents that fit in one tile are one part.
        """
        height, width = latents.shape[2:]
        if max(height, width) <= self.size:
            yield 0, 0, decode(latents)
            return
        overlap, reach = self.size // 4 * self.factor, self.stride * self.factor
        above: list[FloatArray] = []
        for top in range(0, height, self.stride):
            below: list[FloatArray] = []
            beside = None
            for column, left in enumerate(range(0, width, self.stride)):
                tile = decode(latents[:, :, top : top + self.size, left : left + self.size])
                if above:
                    _fade(above[column], tile, 2)
                if beside is not None:
                    _fade(beside, tile, 3)
                # copies: a view would keep the tile
                below.append(tile[:, :, -overlap:].copy())
                beside = tile[:, :, :, -overlap:].copy()
                yield top * self.factor, left * self.factor, tile[:, :, :reach, :reach]
            above = below


@dataclass(frozen=True)
class TinyTiles(Tiles):
    """Square tiles as diffusers' tiny VAE cuts them, whatever size it was trained at; each shares an eighth
    with the next. Latents that fit in one tile but not in a stride are several tiles too."""

    @classmethod
    def of(cls, _sample_size: object, factor: int) -> Self:
        """Return diffusers' tiles of 512 pixels."""
        return cls(512 // factor, factor)

    @property
    def stride(self) -> int:
        """The distance from one tile to the next, in latents."""
        return self.size - self.size // 8

    def decode(
        self, decode: Callable[[FloatArray], FloatArray], latents: FloatArray
    ) -> Iterator[tuple[int, int, FloatArray]]:
        """Yield the image of the latents strip by strip; see :meth:`Tiles.decode`."""
        count, _, height, width = latents.shape
        reach, extent = self.stride * self.factor, self.size * self.factor
        ramp = np.arange(extent, dtype=np.float32) / np.float32(extent - reach - 1)
        fading, whole = ramp.clip(0, 1), np.ones(extent, np.float32)
        carried = np.zeros((count, 3, 0, width * self.factor), np.float32)
        for top in range(0, height, self.stride):
            rows = min(self.size, height - top) * self.factor
            strip = np.zeros((count, 3, rows, width * self.factor), np.float32)
            strip[:, :, : carried.shape[2]] = carried[:, :, :rows]
            for left in range(0, width, self.stride):
                tile = decode(latents[:, :, top : top + self.size, left : left + self.size])
                mask = (fading if top else whole)[:, None] * (fading if left else whole)
                mask = mask[:rows, : tile.shape[3]]
                place = strip[:, :, :, left * self.factor :][..., : tile.shape[3]]
                place[:] = mask * tile + (1 - mask) * place
            yield top * self.factor, 0, strip[:, :, :reach]
            carried = strip[:, :, reach:].copy()


_OF_CLASS: Mapping[object, type[Tiles]] = MappingProxyType({TINY_VAE: TinyTiles})


def tiles_of(cls: object) -> Callable[[object, int], Tiles]:
    """Return what makes the tiles of a VAE of diffusers' class ``cls``: see :meth:`Tiles.of`."""
    return _OF_CLASS.get(cls, Tiles).of


def _fade(edge: FloatArray, tile: FloatArray, axis: int) -> None:
    """Fade the start of ``tile`` linearly from ``edge``, the end of the tile before it along ``axis``."""
    before, after = np.moveaxis(edge, axis, -1), np.moveaxis(tile, axis, -1)
    # the last tile may be narrower than the overlap
    extent = min(before.shape[-1], after.shape[-1])
    share = np.arange(extent) / extent
    old, new = (1 - share).astype(np.float32), share.astype(np.float32)
    after[..., :extent] = before[..., -extent:] * old + after[..., :extent] * new
