"""TensorRT and TensorRT-RTX: two libraries with one interface, and their differences."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import Any

from controlnext.engines.tensorrt.gpu import Gpu, find_gpu
from controlnext.engines.tensorrt.store import PORTABLE, EngineRequirements
from controlnext.errors import InputError, WorkError
from controlnext.optional import extra

OLDEST_PORTABLE = 80
_CHOOSING = Lock()


@dataclass(frozen=True)
class Flavor:
    """One of the two libraries, and the backend of that name."""

    name: str
    title: str
    module: str
    extra: str
    ahead_of_time: bool
    """Whether engines are built ahead of time: for named GPUs, which need not be present, and finished when
    they are loaded. Otherwise an engine is built and timed for the model of the GPU in this machine."""

    def library(self) -> Any:
        """Return the Python module; raise :class:`~controlnext.errors.MissingDependencyError` without it."""
        with extra(self.extra, self.title):
            return importlib.import_module(self.module)

    def version(self) -> str:
        """Return the library's version; raise as :meth:`library` does."""
        version: str = self.library().__version__
        return version

    def polygraphy(self) -> Any:
        """Return the module ``polygraphy.backend.trt``, configured for this library.

        Raises :class:`~controlnext.errors.MissingDependencyError` if it or the library is not installed, and
        :class:`~controlnext.errors.InputError` if this process has used it with the other library.
        """
        self.library()
        with extra(self.extra, "Polygraphy"):
            from polygraphy import config
        # Polygraphy chooses the library when its modules are first imported
        with _CHOOSING:
            if "polygraphy.backend.trt" not in sys.modules:
                config.USE_TENSORRT_RTX = self.ahead_of_time
            loaded = importlib.import_module("polygraphy.backend.trt")
        chosen = loaded.util.trt.__name__
        if chosen != self.module:
            raise InputError(
                f"this process has used Polygraphy with {chosen}; use {self.title} in another process"
            )
        return loaded

    def hardware(self, targets: Sequence[str] = ()) -> str:
        """Return the hardware that engines are built for, as in engine directories and keys.

        ``targets``: GPU architectures (``"8.6"`` or ``"sm86"``), ``"current"`` for that of the GPU in this
        machine; empty for every GPU that the library builds for by default. TensorRT supports no targets.

        Raises :class:`~controlnext.errors.InputError` for targets that the library does not support, and
        :class:`~controlnext.errors.WorkError` if a GPU is needed and there is none.
        """
        self.library()
        if not self.ahead_of_time:
            if targets:
                raise InputError(
                    f"`targets` is not supported by {self.title}, which builds for the GPU in this machine;"
                    " remove `targets`",
                    argument="targets",
                )
            return own_hardware(self._gpu())
        names = {self._gpu().architecture if t == "current" else _architecture(t) for t in targets}
        supported = self.architectures()
        for name in sorted(names - set(supported)):
            accepted = ", ".join(_dotted(one) for one in supported)
            raise InputError(
                f"{self.title} {self.version()} does not build for compute capability {_dotted(name)};"
                f" accepted: {accepted}, current",
                argument="targets",
            )
        return "+".join(sorted(names, key=supported.index)) or PORTABLE

    def architectures(self) -> list[str]:
        """Return the supported GPU architectures, oldest first: ``["sm75", "sm80", ...]``."""
        members = self.library().ComputeCapability.__members__
        return [name.lower() for name in members if re.fullmatch(r"SM\d+", name)]

    def suits(self, hardware: str, gpu: Gpu) -> bool:
        """Return whether an engine that was built for ``hardware`` runs on ``gpu``."""
        if not self.ahead_of_time:
            return hardware == own_hardware(gpu)
        if hardware == PORTABLE:
            return int(gpu.architecture.removeprefix("sm")) >= OLDEST_PORTABLE
        return gpu.architecture in hardware.split("+")

    def requirements(self, gpu: Gpu) -> EngineRequirements:
        """Return the requirements for an engine to run on ``gpu``, for
        :func:`~controlnext.engines.tensorrt.store.find_engine`."""
        hardware = f"{gpu.architecture} ({gpu.name})"
        return EngineRequirements(self.name, self.version(), hardware, lambda built: self.suits(built, gpu))

    def _gpu(self) -> Gpu:
        gpu = find_gpu()
        if gpu is None:
            other = (
                "name a compute capability" if self.ahead_of_time else "the backend tensorrt-rtx needs none"
            )
            raise WorkError(f"{self.title} builds for the GPU in this machine and finds none; {other}")
        return gpu


def own_hardware(gpu: Gpu) -> str:
    """Return the hardware of an engine that runs on this model of GPU only: ``"sm90-nvidia-h100-pcie"``."""
    return f"{gpu.architecture}-{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}"


def _architecture(text: str) -> str:
    found = re.fullmatch(r"(?:sm)?(\d+)\.?(\d)", text.lower())
    if found is None:
        raise InputError(
            f"{text!r} is not a compute capability; accepted: numbers such as 8.6, or current for the GPU in"
            " this machine",
            argument="targets",
        )
    return f"sm{found[1]}{found[2]}"


def _dotted(architecture: str) -> str:
    return f"{architecture[2:-1]}.{architecture[-1]}"


FLAVORS: Mapping[str, Flavor] = MappingProxyType(
    {
        flavor.name: flavor
        for flavor in (
            Flavor("tensorrt", "TensorRT", "tensorrt", "tensorrt", ahead_of_time=False),
            Flavor("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", ahead_of_time=True),
        )
    }
)
"""The libraries by the name of their backend."""
