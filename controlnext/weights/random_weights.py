"""Random weights of the full-size architecture, for trials of size and speed without any file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import Shape, canonical

# Large tensors repeat a block of this many numbers: a Mersenne prime, so no two rows of a matrix are alike.
# Drawing all of 3.5 G normal numbers takes a minute, this takes seconds.
_BLOCK = 2**17 - 1


def random_tensors(shapes: Mapping[str, Shape], network: str, seed: int) -> dict[str, LazyTensor]:
    """Return float16 tensors that depend only on ``seed``, ``network`` and their names and shapes.

    A tensor with two names has the same numbers under both.
    """
    return {
        name: LazyTensor(shape, partial(_draw, name, shape, f"{seed}/{network}/{canonical(name)}"))
        for name, shape in shapes.items()
    }


def _draw(name: str, shape: Shape, key: str) -> Tensor:
    """Draw kernels N(0, 1 / fan-in), gains 1 + 0.1 N(0, 1), biases 0.1 N(0, 1): activations keep their
    size."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    count = math.prod(shape)
    numbers = torch.randn(min(count, _BLOCK), generator=generator)
    if len(shape) >= 2:
        numbers /= math.sqrt(math.prod(shape[1:]))
    else:
        numbers = 0.1 * numbers + (1.0 if name.endswith("weight") else 0.0)
    repeats = math.ceil(count / _BLOCK)
    return numbers.half().repeat(repeats)[:count].reshape(shape)
