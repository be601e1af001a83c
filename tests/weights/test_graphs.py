"""Graphs of bundles are read with their weights, whatever links these files are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from controlnext.errors import BundleError
from controlnext.weights.graphs import read_graph
from support import links
from support.fake_bundle import table, write_fake_bundle

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("link", links.KINDS)
def test_weights_are_read(link: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    """As numbers, as bytes, and in a graph that is written beside it and refers to the same file."""
    linked = link(write_fake_bundle(tmp_path / "bundle", "sd15"), tmp_path / "linked")
    model = read_graph(linked / "text_encoder" / "model.onnx")
    tensor = model.graph.initializers["table"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), table(6))
    assert tensor.tobytes() == table(6).tobytes()
    ir.save(model, linked / "text_encoder" / "other.onnx")
    again = read_graph(linked / "text_encoder" / "other.onnx").graph.initializers["table"].const_value
    assert again is not None
    np.testing.assert_array_equal(again.numpy(), table(6))


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    graph = write_fake_bundle(tmp_path / "bundle", "sd15") / "text_encoder" / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    for initializer in model.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    onnx.save(model, graph)
    with pytest.raises(BundleError, match=r"has weights in \.\./secret, not beside it; export"):
        read_graph(graph)


def test_nothing_else_reads_graphs_with_their_weights() -> None:
    """Files with several links would be refused."""
    files = [
        path for top in ("controlnext", "export", "engines", "runtime") for path in (ROOT / top).rglob("*.py")
    ]
    found = [path for path in files if re.search(r"\bir\.load\(", path.read_text())]
    assert found == [ROOT / "controlnext" / "weights" / "graphs.py"]
