"""``verify --layers`` finds where the graphs of two bundles first differ."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.evaluation import layer_diff as layers
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle

TENSORS = 15
"""Number of tensors that the fake denoiser computes."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", text_encoders=False)


def _changed(bundle: Path, other: Path, name: str, factor: float) -> Path:
    """Copy a bundle with the constant ``name`` of its denoiser multiplied by ``factor``."""
    shutil.copytree(bundle, other)
    path = other / "unet" / "model.onnx"
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if constant.name == name:
            value = numpy_helper.to_array(constant) * np.float32(factor)
            constant.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, path)
    manifest = msgspec.structs.replace(read_manifest(other), files=list_files(other))
    write_manifest(other, manifest)
    return other


def _layers(cli: Cli, bundle: Path, other: Path) -> Any:
    done = cli("verify", bundle, "--layers", other, "--json")
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)["graphs"]


@pytest.mark.parametrize("group", [128, 5])
def test_the_first_tensor_that_differs_is_found(
    cli: Cli, bundle: Path, tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found for every group size; all tensors that depend on it differ too."""
    monkeypatch.setattr(layers, "GROUP", group)
    other = _changed(bundle, tmp_path / "other", "time_ids_divisor", 1.25)
    (graph,) = _layers(cli, bundle, other)
    assert (graph["graph"], graph["compared"]) == ("unet", TENSORS)
    assert graph["first"]["tensor"] == "time_ids_row"
    assert graph["first"]["error"] == pytest.approx(0.25, rel=1e-5)
    model = onnx.load(bundle / "unet" / "model.onnx", load_external_data=False)
    behind, reached = {"time_ids_row"}, []
    for node in model.graph.node:
        if behind & {*node.input, *node.output}:
            behind |= set(node.output)
            reached += node.output
    found = {layer["tensor"]: layer["error"] for layer in graph["worst"]}
    assert {name for name, error in found.items() if error} == set(reached)


def test_equal_graphs_are_skipped(cli: Cli, bundle: Path) -> None:
    assert _layers(cli, bundle, bundle) == []
    assert cli("verify", bundle, "--layers", bundle).out == "all graphs are equal\n"


def test_numbers_that_are_not_finite(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """Tensors that are not finite have an infinite error and come first."""
    other = _changed(bundle, tmp_path / "other", "half", float("nan"))
    (graph,) = _layers(cli, bundle, other)
    assert graph["first"]["tensor"] == "halved"
    assert [layer["tensor"] for layer in graph["worst"][:2]] == ["halved", "noise_pred"]
    shown = cli("verify", bundle, "--layers", other).out
    assert f"{TENSORS} tensors compared, first above 0.0001: Mul (inf)" in shown
    assert "inf" in shown


def test_a_real_graph_in_float16(cli: Cli, tiny: Callable[..., Path]) -> None:
    """Nodes are named after their modules; errors are of the size of float16 rounding."""
    (graph,) = _layers(cli, tiny("sdxl", "fp16"), tiny("sdxl"))
    assert graph["compared"] > 500
    errors = [layer["error"] for layer in graph["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert 1e-4 < errors[-1] < 1e-2
    assert any(layer["node"].startswith("denoiser.") for layer in graph["worst"])


def test_bundles_that_have_nothing_to_compare(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    other = write_fake_bundle(tmp_path / "other", "sd3", text_encoders=False)
    assert_refused(cli("verify", bundle, "--layers", other), "is of another model")
    assert_refused(cli("verify", bundle, "--layers", tmp_path), "is not a bundle")
    done = cli("verify", bundle, "--layers", bundle, "--report", tmp_path / "page.html")
    assert_refused(done, "--layers does not support --report or original weights")


def test_missing_polygraphy_names_the_pip_command(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "controlnext.evaluation.layer_diff")
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.onnx", None)
    done = cli("verify", bundle, "--layers", bundle)
    assert_refused(done, "polygraphy", 'pip install "controlnext[rtx]"')
