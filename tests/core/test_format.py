"""The files of a graph are told by its name, and all of them are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlnext.bundle.format import check_graph, graph_files
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError
from support.fake_bundle import write_fake_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "sdxl")


def test_a_graphs_files_are_those_of_its_directory(bundle: Path) -> None:
    """Those of ``text_encoder_2`` are not those of ``text_encoder``."""
    names = graph_files(read_manifest(bundle), "text_encoder")
    assert names
    assert all(name.split("/")[0] == "text_encoder" for name in names)
    assert graph_files(read_manifest(bundle), "text_encoder_2")


def test_a_graph_is_checked_as_a_whole_and_alone(bundle: Path) -> None:
    """What is damaged in another graph is not seen; a damaged file of this one is."""
    manifest = read_manifest(bundle)
    path = bundle / "unet" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert check_graph(bundle, manifest, "vae_decoder") == bundle / "vae_decoder"
    with pytest.raises(BundleError, match=r"unet/model\.onnx is damaged"):
        check_graph(bundle, manifest, "unet")
