"""A graph in place of the one that the manifest describes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.errors import BundleError
from support.exports import list_anew
from support.fake_bundle import write_fake_bundle
from support.openvino_here import needs_openvino


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_another_graph_than_the_manifests_is_refused_when_it_is_opened(tmp_path: Path, backend: str) -> None:
    """By the first input that the manifest does not list, before a run would miss it."""
    bundle = write_fake_bundle(tmp_path / "bundle")
    shutil.rmtree(bundle / "unet")
    shutil.copytree(bundle / "text_encoder", bundle / "unet")
    list_anew(bundle)
    message = "the graph of unet reads 'input_ids', which the manifest does not list"
    with pytest.raises(BundleError, match=message):
        open_engine(bundle, read_manifest(bundle), "unet", backend)
