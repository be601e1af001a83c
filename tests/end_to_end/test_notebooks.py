"""The notebooks of ``examples/notebooks``: committed without outputs; each runs from its first cell on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.parity import LIMITS
from controlnext.types import Precision
from support.notebooks import NOTEBOOKS, PARAMETERS, ROOT, read_notebook, run_notebook

FOLDER = ROOT / "examples" / "notebooks"
SHARED_TRACES = """
import sys
sys.path.insert(0, {tests!r})
from controlnext.export import exporter
from pathlib import Path
from support.traces import traced_once
exporter.trace = traced_once(exporter.trace, Path({traces!r}))
"""
"""Tracing is most of an export's time, and the suite has traced the small model already."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    """It begins with what it is, and its parameters are in a cell with their tag."""
    cells = read_notebook(path).cells
    assert cells[0].source.startswith("# ")
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert [cell.metadata.get("tags") for cell in code if cell.metadata.get("tags")] == [[PARAMETERS]]


def test_every_notebook_has_a_test() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"first_export", "parity"}


@pytest.mark.usefixtures("shapes_bundle_fp16")
def test_the_first_export(shared_folder: Path, tmp_path: Path) -> None:
    """From the checkpoint to a bundle and an image; only the tracing is taken over from the suite's."""
    before = SHARED_TRACES.format(tests=str(ROOT / "tests"), traces=str(shared_folder / "traces"))
    bundle = tmp_path / "bundle"
    values = {"OUTPUT": f"Path({str(bundle)!r})", "STEPS": "2"}
    out = run_notebook(FOLDER / "first_export.ipynb", tmp_path / "kernels", values, before)
    assert out[-1].startswith("image/png")
    assert "unet: fp16" in out[-2]
    assert "control_scale" in out[-2]
    assert read_manifest(bundle).precision == "fp16"


def test_parity(shapes_bundle_fp16: Path, tmp_path: Path) -> None:
    """The table has a row for each that the export measured; the tensors and images are as near as there."""
    values = {"BUNDLE": f"Path({str(shapes_bundle_fp16)!r})", "STEPS": "2", "COUNT": "1"}
    out = run_notebook(FOLDER / "parity.ipynb", tmp_path / "kernels", values)
    rows = read_manifest(shapes_bundle_fp16).parity
    assert [line.partition("  ")[0] for line in out[1].splitlines()[1:]] == [row.name for row in rows]
    assert "MISSED" not in out[1]
    assert out[2].startswith("image/png")
    limits = LIMITS[Precision.FP16]
    (error,) = re.findall(r"noise_pred: relative L2 (\S+),", out[3])
    assert 0 < float(error) <= limits.graph
    (decibels,) = re.findall(r"PSNR (\S+) dB", out[4])
    assert float(decibels) >= limits.image
    assert "image/png" in out[4]
