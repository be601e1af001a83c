"""The settings of a Triton model, which its configuration keeps as parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from controlnext.engines import check_backend
from controlnext.engines.auto import AutoBackend
from controlnext.engines.devices import device_index
from controlnext.errors import InputError
from controlnext.runtime.limits import RequestLimits

_TEXTS = ("backend", "device")
"""The settings that are no integers."""


@dataclass(frozen=True)
class TritonSettings(RequestLimits):
    """The limits of a Triton model, and what runs it.

    Args:
        backend: "auto" or the name of a backend.
        device: "auto", "cpu", "cuda" or "cuda:N". Instances that Triton puts on a GPU run there.
        threads: number of threads on the CPU; None: one for each core that the process may use.

    Raises:
        InputError: a value that is not accepted.
    """

    backend: str = AutoBackend.name
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backend(self.backend)
        device_index(self.device)
        if self.threads is not None:
            self.check_least({"threads": 1})

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Self:
        """Return the settings in the parameters of a model's configuration; others are not looked at."""
        names = [field.name for field in fields(cls) if field.name in parameters]
        return cls(**{name: _value(name, parameters[name]) for name in names})

    def parameters(self) -> dict[str, str]:
        """Return the settings as parameters of a model's configuration, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"the parameter {name} is {text!r}; it must be an integer", argument=name) from error
