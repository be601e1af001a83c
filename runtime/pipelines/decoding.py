"""Decoding of latents, which all pipelines share: results, and previews of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from controlnext.closeable import Closeable
from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.families.graph_spec import CLASS
from controlnext.families.schema import PREVIEW_DECODER, PREVIEW_VAE, VAE, VAE_DECODER
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.request import CommonRequest, as_floats, is_integer
from controlnext.runtime.tiling import Tiles, tiles_of
from controlnext.runtime.vae import decode_latents, latent_colours, to_pil
from controlnext.types import FloatArray

Images = list[Image.Image] | list[list[Image.Image]] | FloatArray


class LatentDecoder(Closeable):
    """The part of a pipeline that turns latents into images or clips."""

    bundle: Bundle
    family: Family
    request: ClassVar[type[CommonRequest]]
    """The class that holds the arguments of a call and checks them."""
    memory_savers: ClassVar[tuple[str, ...]]
    """The arguments that reduce the memory of a run."""

    def decode(
        self,
        latents: FloatArray,
        output_type: str = "pil",
        chunk: int | None = None,
        vae_tiling: bool = False,
    ) -> Images:
        """Return the images of a step's latents as a call does for ``output_type`` "pil" or "np".

        ``chunk``: number of frames of a clip decoded at a time (default: those of a window of default size).
        ``vae_tiling``: as in a call.
        """
        return self._of_type(output_type, lambda: self._decoded(latents, chunk, vae_tiling))

    def preview(self, latents: FloatArray, output_type: str = "pil") -> Images:
        """Return quickly made images of a step's latents as a call does for ``output_type`` "pil" or "np".

        They are decoded by the tiny VAE that the bundle has for previews (``preview_vae`` of the export), a
        clip's frames one by one. Without one they are a linear map of the latents to colours, published for
        the family's usual VAE, with one pixel for each latent.

        Raises:
            InputError: an unknown ``output_type``, latents of another shape, or neither of the two.
        """
        return self._of_type(output_type, lambda: self._previews(as_floats("latents", latents)))

    def unfinished(self, latents: FloatArray) -> Images:
        """Return PIL images of a step's latents in the size of the result, for showing before the end: made
        by the tiny VAE for previews where the bundle has one, else as :meth:`decode` makes them."""
        if PREVIEW_DECODER in self.bundle.manifest.graphs:
            return self.preview(latents)
        return self.decode(latents)

    def _of_type(self, output_type: str, make: Callable[[], Iterable[FloatArray]]) -> Images:
        if output_type not in ("pil", "np"):
            raise InputError(
                f"unknown output_type {output_type!r} for images; accepted: pil, np", argument="output_type"
            )
        images = list(make())
        if output_type == "np":
            return self._arrange(np.concatenate(images))
        return self._arrange([image for some in images for image in to_pil(some)])

    def _previews(self, latents: FloatArray) -> Iterable[FloatArray]:
        tiny, rgb = self.bundle.manifest.configs.get(PREVIEW_VAE), self.family.latent_rgb
        if tiny is not None:
            rows = _rows(latents, tiny["latent_channels"])
            return self._run_decoder(PREVIEW_DECODER, PREVIEW_VAE, rows, 1)
        if rgb is not None:
            return [latent_colours(rgb, _rows(latents, len(rgb.factors)))]
        raise InputError(
            f"{self.bundle.path} has no tiny VAE for previews, and the colours of {self.family.title}'s"
            " latents are not known; export it with `preview_vae`"
        )

    def images(
        self, latents: FloatArray, chunk: int | None = None, vae_tiling: bool = False
    ) -> Iterator[Image.Image]:
        """Yield the PIL images of a step's latents one by one: a long clip is never in memory as a whole."""
        return (image for some in self._decoded(latents, chunk, vae_tiling) for image in to_pil(some))

    def _decoded(self, latents: FloatArray, chunk: int | None, vae_tiling: bool) -> Iterator[FloatArray]:
        size = self.request.default_chunk if chunk is None else chunk
        if not is_integer(size) or size < 1:
            raise InputError(f"chunk is {chunk!r}; it must be a positive integer", argument="chunk")
        (samples,) = self.bundle.manifest.graphs[VAE_DECODER].inputs
        rows = _rows(as_floats("latents", latents), samples.shape[1])
        return self._run_decoder(VAE_DECODER, VAE, rows, size, self.tiles(vae_tiling))

    def _run_decoder(
        self, graph: str, network: str, rows: FloatArray, chunk: int, tiles: Tiles | None = None
    ) -> Iterator[FloatArray]:
        config = self.bundle.manifest.configs[network]
        guard = self._guard(*(self.family.vae_factor * side for side in rows.shape[2:]))
        with guard.watch():
            return guard.each(decode_latents(self.bundle.engine(graph), config, rows, chunk, tiles))

    def tiles(self, vae_tiling: bool) -> Tiles | None:
        """Return the tiles for decoding, or None without ``vae_tiling``.

        Raises :class:`InputError` if the VAE cannot decode in tiles.
        """
        if not isinstance(vae_tiling, (bool, np.bool_)):
            raise InputError(f"vae_tiling is {vae_tiling!r}; it must be True or False", argument="vae_tiling")
        if not vae_tiling:
            return None
        if not self.family.vae_tiling:
            raise InputError(
                f"vae_tiling was given, but is not supported by the VAE of {self.family.title}; remove"
                " `vae_tiling`",
                argument="vae_tiling",
            )
        config = self.bundle.manifest.configs[VAE]
        return tiles_of(config.get(CLASS))(config.get("sample_size"), self.family.vae_factor)

    def _guard(self, height: int, width: int) -> MemoryGuard:
        """Return the guard that reports running out of memory at this size in pixels."""
        return MemoryGuard(height, width, self.memory_savers)

    @abstractmethod
    def _arrange(self, images: Any) -> Images:
        """Return PIL images, or an array (N, H, W, 3), in the form in which a call returns them."""


def _rows(latents: FloatArray, channels: int | str) -> FloatArray:
    """Return the latents of images or of a clip as (N, C, h, w)."""
    if latents.ndim < 4 or latents.shape[-3] != channels or not latents.size:
        raise InputError(
            f"latents have shape {latents.shape}, expected (N, {channels}, height, width), or"
            f" (1, frames, {channels}, height, width) for a clip",
            argument="latents",
        )
    return latents.reshape(-1, *latents.shape[-3:])
