"""Cache of traced graphs, shared by all processes and tests of a run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from filelock import FileLock
from torch import nn

LARGEST = 1 << 24
"""Largest number of parameters of a cached network: a cached graph has zeros for them."""

Trace = Callable[[nn.Module, Any, Mapping[str, int]], ir.Model]


def traced_once(trace: Trace, directory: Path) -> Trace:
    """Return ``trace`` with a cache of graphs in ``directory``. Tracing is most of the time of an export, and
    depends only on the architecture, not on weights or precision."""

    @functools.wraps(trace)
    def kept(module: nn.Module, spec: Any, sizes: Mapping[str, int], *_report: Any) -> ir.Model:
        if sum(parameter.numel() for parameter in module.parameters()) > LARGEST:
            return trace(module, spec, sizes)
        # functions are told by their places in memory, which differ from process to process
        architecture = re.sub(" at 0x[0-9a-f]+", "", "\n".join(_architecture(module, spec, sizes)))
        key = hashlib.sha256(architecture.encode()).hexdigest()
        path = directory / f"{key}.onnx"
        directory.mkdir(exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                partial = path.with_suffix(".partial")
                ir.save(trace(module, spec, sizes), partial)
                partial.rename(path)
        return ir.load(path)

    return kept


def _architecture(module: nn.Module, spec: Any, sizes: Mapping[str, int]) -> Iterator[str]:
    """Return everything that a trace depends on: configurations, attributes, names and shapes of
    parameters."""
    yield f"{spec!r} {sorted(sizes.items())} {module!r}"
    for name, part in module.named_modules():
        plain = {key: _plain(value) for key, value in vars(part).items() if not key.startswith("_")}
        config = getattr(part, "config", None)
        if isinstance(config, Mapping):  # of diffusers: private entries are in the order of a set
            config = {key: value for key, value in config.items() if not key.startswith("_")}
        yield f"{name} {sorted(plain.items())} {config}"
    for name, tensor in module.state_dict().items():
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}"


def _plain(value: Any) -> str:
    if dataclasses.is_dataclass(value) or isinstance(value, int | float | str | bool | tuple | list | None):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
