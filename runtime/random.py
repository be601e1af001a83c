"""Draw the normal numbers of `torch.randn` on the CPU without torch.

A seed thus gives the same image here as in PyTorch. The 32-bit stream is MT19937 in both libraries, seeded
alike by torch and by NumPy's legacy `RandomState` (whose stream NumPy guarantees to keep). So only the
conversion of that stream to normal numbers is written here.

torch turns the stream into normal numbers in two ways (ATen's DistributionTemplates.h and
DistributionsHelper.h):

- fewer than 16 numbers: one by one in double precision by Box-Muller; the second number of each pair is kept
  by the generator for the next such call, and calls of the other kind neither use nor drop it;
- 16 numbers or more: float32 uniforms of 24 bits, Box-Muller on blocks of 16, where number j takes uniform j
  as radius and uniform j + 8 as angle. This is the layout of torch's plain, AVX2 and AVX-512 kernels alike.
  If the count is not a multiple of 16, the last 16 numbers are made again from fresh uniforms.

Only the last bits of log, cos and sin differ: up to 5e-7 against torch 2.13 with AVX-512.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.types import FloatArray

_BLOCK = 16
_HALF = _BLOCK // 2
_TWO_PI = np.float32(2 * math.pi)
_SEED_MIN, _SEED_MAX = -(2**63), 2**64 - 1


def random_seed() -> int:
    """Return a random seed, one of the 2**32 that differ."""
    return secrets.randbelow(2**32)


class TorchGenerator:
    """A generator of the numbers of `torch.Generator("cpu").manual_seed(seed)`, for calls of any sizes.

    Args:
        seed: -2**63 .. 2**64 - 1, the range of `manual_seed`; as in torch only its low 32 bits count.

    Raises:
        InputError: the seed is not an integer or out of range.
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed is {seed!r}; it must be an integer", argument="seed")
        if not _SEED_MIN <= seed <= _SEED_MAX:
            raise InputError(
                f"seed is {seed}; it must be an integer from -2**63 to 2**64 - 1", argument="seed"
            )
        self._stream = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self._kept: float | None = None

    def randn(self, shape: Sequence[int]) -> FloatArray:
        """Return standard normal numbers, as `torch.randn(shape, generator=..., dtype=torch.float32)`.

        Args:
            shape: sizes, each 0 or more; `()` for a single number.

        Returns:
            float32 array of that shape.
        """
        count = math.prod(shape)
        numbers = self._few(count) if count < _BLOCK else self._many(count)
        return numbers.reshape(tuple(shape))

    def _few(self, count: int) -> FloatArray:
        return np.array([self._one() for _ in range(count)], np.float32)

    def _one(self) -> float:
        if self._kept is not None:
            number, self._kept = self._kept, None
            return number
        high_1, low_1, high_2, low_2 = (int(word) for word in self._words(4))
        angle = 2 * math.pi * _uniform_53(high_1, low_1)
        radius = math.sqrt(-2 * math.log1p(-_uniform_53(high_2, low_2)))
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _many(self, count: int) -> FloatArray:
        whole = count - count % _BLOCK
        uniforms = self._uniforms_24(count)
        numbers = np.empty(count, np.float32)
        numbers[:whole] = _box_muller(uniforms[:whole])
        if whole != count:
            numbers[-_BLOCK:] = _box_muller(self._uniforms_24(_BLOCK))
        return numbers

    def _uniforms_24(self, count: int) -> FloatArray:
        return (self._words(count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._stream.randint(0, 2**32, count, dtype=np.uint32)


def _uniform_53(high: int, low: int) -> float:
    return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniforms: FloatArray) -> FloatArray:
    """Return as many normal numbers as there are `uniforms` in [0, 1), a multiple of 16; all float32."""
    blocks = uniforms.reshape(-1, _BLOCK)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, :_HALF]))
    angle = _TWO_PI * blocks[:, _HALF:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
