"""The manifest: what is written is read back, and a damaged bundle is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from controlnext.errors import BundleError
from controlnext.files import MANIFEST
from controlnext.manifest import (
    SCHEMA,
    Graph,
    Manifest,
    ParityRow,
    Source,
    TensorEntry,
    check_file,
    list_files,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one small file besides its manifest."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, _manifest(tmp_path))
    return tmp_path


def _manifest(bundle: Path) -> Manifest:
    sample = TensorEntry("sample", "float32", ["batch", 4, "height", "8*width"])
    return Manifest(
        schema=SCHEMA,
        family="sdxl",
        variant="sdxl",
        precision="fp16",
        graphs={"unet": Graph("unet", "fp16", [sample], [sample])},
        configs={"unet": {"in_channels": 4}},
        options={"force_zeros_for_empty_prompt": True},
        sources=[Source("base", "base", "00ff")],
        tools={"torch": "2.13.0"},
        files=list_files(bundle),
        parity=[ParityRow("unet: noise_pred", "relative L2", 1e-3, 4e-3)],
    )


def _change(bundle: Path, **fields: object) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**content, **fields}))


def test_what_is_written_is_read_back(bundle: Path) -> None:
    assert read_manifest(bundle) == _manifest(bundle)
    assert read_manifest(bundle).graphs["unet"].inputs[0].spec().shape == ("batch", 4, "height", "8*width")


def test_equal_manifests_give_equal_files(bundle: Path) -> None:
    first = (bundle / MANIFEST).read_bytes()
    manifest = _manifest(bundle)
    write_manifest(
        bundle, msgspec.structs.replace(manifest, configs=dict(reversed(manifest.configs.items())))
    )
    assert (bundle / MANIFEST).read_bytes() == first


def test_the_files_are_listed_without_the_manifest(bundle: Path) -> None:
    assert list(list_files(bundle)) == ["unet/model.onnx"]


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        read_manifest(tmp_path)


def test_a_newer_schema_is_refused_whatever_else_it_holds(bundle: Path) -> None:
    _change(bundle, schema=SCHEMA + 1, graphs="something new")
    with pytest.raises(BundleError, match=f"has schema {SCHEMA + 1}.*update controlnext"):
        read_manifest(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"schema": 1}', b'{"schema": "one"}'])
def test_a_damaged_manifest_is_named(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=f"{MANIFEST} is damaged"):
        read_manifest(bundle)


def test_an_unknown_field_is_damage(bundle: Path) -> None:
    _change(bundle, grafs={})
    with pytest.raises(BundleError, match="grafs"):
        read_manifest(bundle)


def test_a_whole_file_passes(bundle: Path) -> None:
    assert check_file(bundle, read_manifest(bundle), "unet/model.onnx") == bundle / "unet" / "model.onnx"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.onnx is missing"),
        (b"gra", "model.onnx has 3 bytes, the manifest says 5 .*: truncated"),
        (b"grapf", "model.onnx is damaged: its sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64}"),
    ],
)
def test_a_broken_file_is_named(bundle: Path, content: bytes | None, message: str) -> None:
    path = bundle / "unet" / "model.onnx"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        check_file(bundle, read_manifest(bundle), "unet/model.onnx")


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "passed"),
    [
        (1e-3, 1e-3, False, True),
        (2e-3, 1e-3, False, False),
        (float("nan"), 1e-3, False, False),
        (float("inf"), 1e-3, False, False),
        (40, 40, True, True),
        (39, 40, True, False),
        (float("nan"), 40, True, False),
    ],
)
def test_a_row_passes_within_its_limit(value: float, limit: float, at_least: bool, passed: bool) -> None:
    assert ParityRow("output", "metric", value, limit, at_least).passed is passed
