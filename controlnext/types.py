"""Types that several parts of the package have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Feed = Mapping[str, np.ndarray]
"""Arrays by the names of a graph's inputs, or of its outputs."""
Progress = Callable[[str, float], None]
"""Takes what is being done and how much is done of all, from 0 to 1."""
