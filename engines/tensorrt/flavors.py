"""TensorRT and TensorRT-RTX: two libraries with one interface, and what differs between them."""

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
    """Whether an engine is finished only where it is loaded: it is built for GPUs that are named, none of
    which has to be there, and nothing is timed. Else it is built for the model of the GPU at hand alone."""

    def library(self) -> Any:
        """The Python module; raises :class:`~controlnext.errors.MissingDependencyError` without it."""
        with extra(self.extra, self.title):
            return importlib.import_module(self.module)

    def version(self) -> str:
        """The library's version; raises as :meth:`library` does."""
        version: str = self.library().__version__
        return version

    def polygraphy(self) -> Any:
        """The module ``polygraphy.backend.trt``, set to work with this library.

        Raises :class:`~controlnext.errors.MissingDependencyError` where it or the library is not installed,
        and :class:`~controlnext.errors.InputError` where this process uses it with the other library.
        """
        self.library()
        with extra(self.extra, "Polygraphy"):
            from polygraphy import config
        # Polygraphy chooses the library when its modules are imported, which happens once
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
        """What engines are built for, as engine directories and keys have it.

        ``targets``: GPU architectures (``"8.6"`` or ``"sm86"``), ``"current"`` for that of the GPU at hand;
        none for every GPU that the library builds for by default. TensorRT takes none.

        Raises :class:`~controlnext.errors.InputError` for targets that the library has not, and
        :class:`~controlnext.errors.WorkError` where a GPU is needed and there is none.
        """
        self.library()
        if not self.ahead_of_time:
            if targets:
                raise InputError(
                    f"{self.title} builds for the GPU at hand; leave `targets` out", argument="targets"
                )
            return own_hardware(self._gpu())
        names = {self._gpu().architecture if t == "current" else _architecture(t) for t in targets}
        known = self.architectures()
        for name in sorted(names - set(known)):
            accepted = ", ".join(_dotted(one) for one in known)
            raise InputError(
                f"{self.title} {self.version()} does not build for compute capability {_dotted(name)};"
                f" accepted: {accepted}, current",
                argument="targets",
            )
        return "+".join(sorted(names, key=known.index)) or PORTABLE

    def architectures(self) -> list[str]:
        """The GPU architectures that can be named, oldest first: ``["sm75", "sm80", ...]``."""
        members = self.library().ComputeCapability.__members__
        return [name.lower() for name in members if re.fullmatch(r"SM\d+", name)]

    def suits(self, hardware: str, gpu: Gpu) -> bool:
        """Whether an engine that was built for ``hardware`` runs on ``gpu``."""
        if not self.ahead_of_time:
            return hardware == own_hardware(gpu)
        if hardware == PORTABLE:
            return int(gpu.architecture.removeprefix("sm")) >= OLDEST_PORTABLE
        return gpu.architecture in hardware.split("+")

    def requirements(self, gpu: Gpu) -> EngineRequirements:
        """What an engine has to be to run on ``gpu``, for
        :func:`~controlnext.engines.tensorrt.store.find_engine`."""
        hardware = f"{gpu.architecture} ({gpu.name})"
        return EngineRequirements(self.name, self.version(), hardware, lambda built: self.suits(built, gpu))

    def _gpu(self) -> Gpu:
        gpu = find_gpu()
        if gpu is None:
            other = (
                "name a compute capability" if self.ahead_of_time else "the backend tensorrt-rtx needs none"
            )
            raise WorkError(f"{self.title} is to build for the GPU at hand and finds none; {other}")
        return gpu


def own_hardware(gpu: Gpu) -> str:
    """The hardware of an engine that runs on this model of GPU only: ``"sm90-nvidia-h100-pcie"``."""
    return f"{gpu.architecture}-{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}"


def _architecture(text: str) -> str:
    found = re.fullmatch(r"(?:sm)?(\d+)\.?(\d)", text.lower())
    if found is None:
        raise InputError(
            f"compute capability {text!r} is none; give one as 8.6, or current for the GPU at hand",
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
"""By the name of the backend."""
