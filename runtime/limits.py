"""Limits of a server: how much a request may ask for, and how many may be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from controlnext.runtime.request import check_least

_LEAST: Mapping[str, int] = MappingProxyType(
    {
        "max_rows": 1,
        "max_waiting": 0,
        "max_pixels": 1,
        "max_steps": 1,
        "max_images": 1,
        # every family makes something of this size
        "max_size": 16,
    }
)
"""The least value of each limit."""


@dataclass(frozen=True)
class RequestLimits:
    """The limits of any server of images.

    Args:
        max_rows: largest number of rows in a run of the denoiser (a guided image is two rows).
        max_waiting: largest number of requests of a bundle that wait; more are refused until later.
        max_pixels: largest number of pixels of an image in a request, checked before it is decoded.
        max_steps: largest number of denoising steps of a request.
        max_images: largest number of images of a request.
        max_size: largest height and width of a result in pixels.

    Raises:
        InputError: a value that is not accepted.
    """

    max_rows: int = 8
    max_waiting: int = 64
    max_pixels: int = 4096 * 4096
    max_steps: int = 150
    max_images: int = 8
    max_size: int = 2048

    def __post_init__(self) -> None:
        self.check_least(_LEAST)

    def check_least(self, least: Mapping[str, int]) -> None:
        """Raise :class:`InputError` unless each limit named in ``least`` is an integer of at least that."""
        for name, lowest in least.items():
            check_least(name, getattr(self, name), lowest)
