"""The suite where PyTorch is not installed: tests that need it are skipped (``make test-lowest-runtime``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TORCH_HERE = find_spec("torch") is not None
_BUILD_ONLY = {"torch", "safetensors", "diffusers", "transformers", "peft", "onnxscript", "onnx_ir"}
"""What a machine that only runs bundles does not have."""
_MAY_NEED_THEM = (
    ROOT / "tests",
    ROOT / "benchmarks",
    ROOT / "examples",
    ROOT / "export",
    *(ROOT / "controlnext" / name for name in ("bench", "evaluation", "models", "reference", "weights")),
)


class _Skipping:
    """A finder that skips the test, or the file of tests, that imports what a runtime does without.

    A module of the runtime that imports it gets Python's ImportError, so that its test fails.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name in _BUILD_ONLY and _who_imports().is_relative_to(ROOT):
            asks = _who_imports()
            if any(asks.is_relative_to(folder) for folder in _MAY_NEED_THEM):
                pytest.skip(f"needs {name}, which is not installed", allow_module_level=True)
        return None


def _who_imports() -> Path:
    """Return the file of the import statement that is being carried out."""
    frame = sys._getframe(2)
    while frame.f_back and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return Path(frame.f_code.co_filename)


def skip_what_needs_torch() -> None:
    """Have tests that import PyTorch, or what comes with it, be skipped where it is not installed."""
    if not TORCH_HERE:
        sys.meta_path.append(_Skipping())
