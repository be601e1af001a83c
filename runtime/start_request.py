"""The arguments of a call that starts from an image, and the checks that need no model."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families.values import is_integer, is_number

UPSCALE_MODES = ("pixel", "latent")
MOST_UPSCALE = 8


@dataclass(frozen=True, eq=False)
class StartArguments:
    """The arguments with which a run starts from an image; :class:`~controlnext.runtime.ImagePipeline`
    describes them."""

    _: KW_ONLY
    image: Any = None
    strength: float = 0.8
    mask_image: Any = None
    padding_mask_crop: int | None = None
    overlay: bool = False
    upscale: float | None = None
    upscale_mode: str = "pixel"

    @property
    def puts_back(self) -> bool:
        """Whether the result is put back into the image that the run starts from."""
        return self.overlay or self.padding_mask_crop is not None

    def check_start(self, output_type: str, latents: Any) -> None:
        """Raise :class:`InputError` for a value that no model accepts."""
        strength = self.strength
        if not is_number(_plain(strength)) or not 0 <= strength <= 1:
            raise InputError(
                f"strength is {strength!r}; it must be a number from 0 to 1 that leaves a step",
                argument="strength",
            )
        self._check_upscale()
        for name in ("mask_image", "padding_mask_crop"):
            if getattr(self, name) is not None and self.image is None:
                raise InputError(f"`{name}` was given without an image; set `image`", argument="image")
        if self.image is not None and latents is not None:
            raise InputError(
                "latents and image were given; give one of them: `seed` chooses the noise that is added to an"
                " image",
                argument="latents",
            )
        self._check_mask(output_type)

    def _check_mask(self, output_type: str) -> None:
        padding, overlay = self.padding_mask_crop, self.overlay
        if padding is not None and (not is_integer(_plain(padding)) or padding < 0):
            raise InputError(
                f"padding_mask_crop is {padding!r}; it must be an integer of at least 0",
                argument="padding_mask_crop",
            )
        if not isinstance(overlay, (bool, np.bool_)):
            raise InputError(f"overlay is {overlay!r}; it must be True or False", argument="overlay")
        asked = "padding_mask_crop" if padding is not None else "overlay" if overlay else None
        if asked is None:
            return
        if self.mask_image is None:
            raise InputError(f"`{asked}` was given without a mask; set `mask_image`", argument="mask_image")
        if output_type != "pil":
            raise InputError(
                f"output_type is {output_type!r}, but {asked} puts the result into the image; give pil",
                argument="output_type",
            )

    def _check_upscale(self) -> None:
        factor = self.upscale
        if self.upscale_mode not in UPSCALE_MODES:
            raise InputError(
                f"unknown upscale_mode {self.upscale_mode!r}; accepted: {', '.join(UPSCALE_MODES)}",
                argument="upscale_mode",
            )
        if factor is None:
            return
        if not is_number(_plain(factor)) or not 1 < factor <= MOST_UPSCALE:
            raise InputError(
                f"upscale is {factor!r}; it must be a number above 1, at most {MOST_UPSCALE}",
                argument="upscale",
            )
        if self.mask_image is not None:
            raise InputError("`upscale` and `mask_image` were given; give one of them", argument="upscale")


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's."""
    return value.item() if isinstance(value, np.generic) else value
