"""The formats of clips that are written, and how they are encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

from controlnext import processor

DEFAULT_FPS = Fraction(7)
"""As in diffusers for Stable Video Diffusion."""
LOWEST_FPS, HIGHEST_FPS = 0.1, 240


@dataclass(frozen=True)
class Format:
    """The encoding of a file format in FFmpeg's names, the most frames a second that it can have, and whether
    its sides must be even."""

    codec: str
    pixels: str
    options: Mapping[str, str] = field(default_factory=dict)
    highest_fps: int = HIGHEST_FPS
    even_sides: bool = False


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        # quality at which the losses of H.264 are hardly seen
        ".mp4": Format("libx264", "yuv420p", {"crf": "17"}, even_sides=True),
        # a GIF counts in hundredths of a second, and viewers slow down what is faster than two of them
        ".gif": Format("gif", "pal8", highest_fps=50),
    }
)


def encoder_options(kind: Format) -> dict[str, str]:
    """Return the options of a format's encoder, with which the same images become the same file everywhere.

    x264's functions for AVX-512 read memory that nobody wrote: of clips of 64 x 48 pixels one in 400 came out
    a few bytes longer (core 165). With those for AVX2, which other processors use, none of 7,500 did.
    """
    is_x264 = kind.codec == "libx264"
    without = {"x264-params": "asm=avx2"} if is_x264 and "avx512f" in processor.instruction_sets() else {}
    return {**kind.options, **without}
