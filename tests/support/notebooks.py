"""Runs notebooks as Jupyter does, with other values of their parameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = "parameters"
"""The tag of the cell whose names may get other values, as papermill has it."""


def read_notebook(path: Path) -> Any:
    """Read a notebook; raises :class:`nbformat.ValidationError` if it is none."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run_notebook(path: Path, kernels: Path, values: Mapping[str, str], before: str = "") -> list[str]:
    """Run a notebook in its own directory; return what each code cell shows, but for warnings.

    ``values``: Python expressions for names of the parameters' cell, which run behind it. ``before``: code
    that runs first. ``kernels``: a directory for the description of the kernel, which is this Python's.
    """
    notebook = read_notebook(path)
    cells = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ())]
    given = "\n".join(f"{name} = {value}" for name, value in values.items())
    cells[0].source = f"{before}\n{cells[0].source}\n{given}"
    _describe_kernel(kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(kernels))
        patch.setenv("IPYTHONDIR", str(kernels / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(kernels / "runtime"))
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="suite", resources=resources).execute()
    return [_text(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _describe_kernel(folder: Path) -> None:
    """Write a kernel that is this Python, wherever ipykernel is installed."""
    place = folder / "kernels" / "suite"
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "suite", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(kernel))


def _text(cell: Any) -> str:
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    return "".join(output.get("text", "") or _kinds(output) for output in shown)


def _kinds(output: Any) -> str:
    """Return an output's text, behind the kinds that it has besides, such as image/png."""
    data = output.get("data", {})
    return " ".join([*(kind for kind in data if kind != "text/plain"), data.get("text/plain", "")])
