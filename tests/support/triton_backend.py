"""A stand-in for Triton's Python module ``triton_python_backend_utils``, as far as models use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from support.gate import PATIENCE

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    pass


class TritonError(Exception):
    CANCELLED, INTERNAL, INVALID_ARG, UNAVAILABLE = range(4)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def values(self) -> dict[str, Any]:
        """Return what the outputs of the one job are, by name."""
        return {tensor.name: tensor.array[0].tolist() for tensor in self.output_tensors}


class FakeRequest:
    """A request with these inputs, and its sender; ``responses`` has what was sent, with its flags."""

    def __init__(self, parameters: str = "{}", **inputs: Any) -> None:
        self.inputs = {name: _tensor(value) for name, value in inputs.items()}
        self.responses: SimpleQueue[tuple[InferenceResponse, int]] = SimpleQueue()
        self.cancelled = self.ended = False
        self._parameters = parameters

    def parameters(self) -> str:
        return self._parameters

    def get_response_sender(self) -> FakeRequest:
        return self

    def is_cancelled(self) -> bool:
        # the real one would read memory that is no longer there
        assert not self.ended
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int) -> None:
        assert not self.ended
        self.ended = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.responses.put((response, flags))

    def next(self) -> InferenceResponse:
        """Return the next response."""
        return self.responses.get(timeout=PATIENCE)[0]

    def all(self) -> list[InferenceResponse]:
        """Return the responses up to the last one."""
        found = [self.next()]
        while not (self.ended and self.responses.empty()):
            found.append(self.next())
        return found

    def error(self) -> TritonError:
        """Return the only response, which must be an error of one line."""
        (response,) = self.all()
        assert response.error is not None, response
        assert "\n" not in str(response.error)
        return response.error


def get_input_tensor_by_name(request: FakeRequest, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


def _tensor(value: Any) -> np.ndarray:
    """Return the tensor of one job with these values, (1, n); arrays are as they are."""
    if isinstance(value, np.ndarray):
        return value
    values = [one.encode() if isinstance(one, str) else one for one in _listed(value)]
    return np.array([values], np.object_ if isinstance(values[0], bytes) else None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
