"""The library OpenVINO: loads it without its telemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from controlnext.optional import extra

EXTRA, TITLE, MODULE = "openvino", "OpenVINO", "openvino"
_TELEMETRY = "openvino_telemetry"


@cache
def core() -> Any:
    """Return the process's ``openvino.Core``.

    Raises :class:`~controlnext.errors.MissingDependencyError` where OpenVINO is not installed.
    """
    with extra(EXTRA, TITLE), without_telemetry():
        import openvino
    return openvino.Core()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide the package through which OpenVINO reports its import over the network, with a file at home.

    OpenVINO does without the package where it cannot be imported.
    """
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)


def reason(error: Exception) -> str:
    """Return the line of an error of OpenVINO that tells what is wrong; its first ones tell files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[-1]
