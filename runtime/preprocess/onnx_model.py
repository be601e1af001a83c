"""ONNX files of preprocessors, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from controlnext.engines.onnxruntime import library
from controlnext.errors import InputError
from controlnext.types import FloatArray

_TYPES: Mapping[str, type] = MappingProxyType({"tensor(float)": np.float32, "tensor(float16)": np.float16})


class OnnxModel:
    """A model with one input, images (batch, 3, height, width).

    ``argument``: the option that named the file ``path``, for errors. ``size``: height and width that the
    model takes, or None where it takes any.
    """

    def __init__(self, path: Path, argument: str) -> None:
        """Open the file. Raises :class:`InputError` for another kind of file or input."""
        onnxruntime = library.load()
        self._path, self._argument = path, argument
        try:
            self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no common class for them
            raise self.refused("it cannot be opened as an ONNX model") from error
        inputs = self._session.get_inputs()
        first = inputs[0]
        images = len(first.shape) == 4 and (first.shape[1] == 3 or not isinstance(first.shape[1], int))
        if len(inputs) != 1 or not images or first.type not in _TYPES:
            shapes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise self.refused(f"its inputs are {shapes}; accepted: one, float (batch, 3, height, width)")
        self._name, self._type = first.name, _TYPES[first.type]
        height, width = first.shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.size: tuple[int, int] | None = (height, width) if fixed else None

    def __call__(self, image: FloatArray) -> list[FloatArray]:
        """Return the outputs, in float32, for an image (height, width, 3)."""
        batch: np.ndarray = np.ascontiguousarray(image.transpose(2, 0, 1)[None], self._type)
        try:
            outputs = self._session.run(None, {self._name: batch})
        except Exception as error:  # as above
            raise self.refused(
                f"it does not run on an image of {image.shape[1]} x {image.shape[0]}"
            ) from error
        made = [np.asarray(output, np.float32) for output in outputs]
        if not all(np.isfinite(output).all() for output in made):
            raise self.refused("it gives numbers that are not finite")
        return made

    def refused(self, reason: str) -> InputError:
        """Return the error that this file does not fit, for ``reason``."""
        return InputError(
            f"{self._path.name} is not a model for `{self._argument}`: {reason}", argument=self._argument
        )
