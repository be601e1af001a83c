"""Decoding and encoding in overlapping tiles with diffusers' arithmetic.

The memory of decoder and encoder does not grow with the image.
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

Tile = Callable[[FloatArray], FloatArray]
"""Decodes or encodes a tile."""
Part = tuple[int, int, FloatArray]
"""The upper and the left edge of a part of a result, and the part."""


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

    def decode(self, decode: Tile, latents: FloatArray) -> Iterator[Part]:
        """Yield the image of the latents (N, C, h, w) part by part, row by row.

        ``decode`` turns the latents of a tile into samples (N, 3, H, W) float32. Each item is the upper and
        the left edge of a part in pixels, and its samples. Latents that fit in one tile are one part.
        """
        return self._parts(decode, latents, self.size, self.stride, lambda length: length * self.factor)

    def encode(self, encode: Tile, samples: FloatArray) -> FloatArray:
        """Return what ``encode`` makes of samples (N, 3, H, W), tile by tile: (N, C, H/factor, W/factor)."""
        size, stride = self.size * self.factor, self.stride * self.factor
        parts = list(self._parts(encode, samples, size, stride, lambda length: length // self.factor))
        count, channels = parts[0][2].shape[:2]
        height, width = (length // self.factor for length in samples.shape[2:])
        whole = np.empty((count, channels, height, width), np.float32)
        for top, left, part in parts:
            whole[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
        return whole

    def _parts(
        self, run: Tile, given: FloatArray, size: int, stride: int, across: Callable[[int], int]
    ) -> Iterator[Part]:
        """Yield the results of ``run`` for tiles of ``given``, each with its upper and its left edge.

        ``size`` and ``stride`` of the tiles are in pixels or latents as ``given`` is; ``across`` returns such
        a length in those of the results.
        """
        height, width = given.shape[2:]
        if max(height, width) <= size:
            yield 0, 0, run(given)
            return
        overlap, reach = across(size - stride), across(stride)
        above: list[FloatArray] = []
        for top in range(0, height, stride):
            below: list[FloatArray] = []
            beside = None
            for column, left in enumerate(range(0, width, stride)):
                tile = run(given[:, :, top : top + size, left : left + size])
                if above:
                    _fade(above[column], tile, 2)
                if beside is not None:
                    _fade(beside, tile, 3)
                # copies: a view would keep the tile
                below.append(tile[:, :, -overlap:].copy())
                beside = tile[:, :, :, -overlap:].copy()
                yield across(top), across(left), tile[:, :, :reach, :reach]
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

    def _parts(
        self, run: Tile, given: FloatArray, size: int, stride: int, across: Callable[[int], int]
    ) -> Iterator[Part]:
        """Yield the results strip by strip; see :meth:`Tiles._parts`."""
        height, width = given.shape[2:]
        reach, extent = across(stride), across(size)
        ramp = np.arange(extent, dtype=np.float32) / np.float32(extent - reach - 1)
        fading, whole = ramp.clip(0, 1), np.ones(extent, np.float32)
        carried: FloatArray | None = None
        for top in range(0, height, stride):
            rows = across(min(size, height - top))
            strip: FloatArray | None = None
            for left in range(0, width, stride):
                tile = run(given[:, :, top : top + size, left : left + size])
                if strip is None:
                    strip = np.zeros((*tile.shape[:2], rows, across(width)), np.float32)
                    if carried is not None:
                        strip[:, :, : carried.shape[2]] = carried[:, :, :rows]
                mask = (fading if top else whole)[:, None] * (fading if left else whole)
                mask = mask[:rows, : tile.shape[3]]
                place = strip[:, :, :, across(left) :][..., : tile.shape[3]]
                place[:] = mask * tile + (1 - mask) * place
            assert strip is not None
            yield across(top), 0, strip[:, :, :reach]
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
