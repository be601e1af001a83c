"""ONNX Runtime is loaded in one place, without its telemetry."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from controlnext.onnx_runtime import load_onnxruntime

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_unless_it_is_wanted(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # set first, so that the test's end removes what is set by the call
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before or "")
    if before is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    assert load_onnxruntime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after


def _packages(node: ast.AST) -> list[str]:
    """Return the top-level packages that a statement imports."""
    names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [name.partition(".")[0] for name in names]


def test_nothing_else_imports_it() -> None:
    """Whatever is imported first decides, so no module may go around it."""
    importing = {
        path.relative_to(ROOT).as_posix()
        for folder in ("controlnext", "engines", "export", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if "onnxruntime" in _packages(node)
    }
    assert importing == {"controlnext/onnx_runtime.py"}
