"""Bundles whose files are links, hard or symbolic, run as others do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.format import ENGINES
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from support import links
from support.fake_bundle import table, write_fake_bundle

Link = Callable[[Path, Path], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("whole") / "bundle", "sd15")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("link", links.KINDS)
def test_an_engine_opens(link: Link, backend: str, bundle: Path, tmp_path: Path) -> None:
    """Of a graph with weights in another file."""
    pytest.importorskip(backend)
    linked = link(bundle, tmp_path / "linked")
    with open_engine(linked, read_manifest(linked), "text_encoder", backend) as engine:
        tokens = np.arange(8)[None]
        found = engine.run({"input_ids": tokens})["prompt_embeds"]
    np.testing.assert_allclose(found, table(6)[tokens])
    assert not list((linked / ENGINES).glob(".plain.*"))


def test_where_nothing_can_be_written_files_are_copied(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = links.from_many_directories(bundle, tmp_path / "linked")

    def refuse(*_arguments: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("controlnext.bundle.plain.os.link", refuse)
    (linked / ENGINES).write_text("no directory")
    with open_engine(linked, read_manifest(linked), "text_encoder", "onnxruntime", cache=False) as engine:
        assert engine.run({"input_ids": np.zeros((1, 8), np.int64)})
