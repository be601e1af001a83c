"""Names of a bundle's files, and links: none leads out of the bundle."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.format import check_size
from controlnext.bundle.names import check_names
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError
from support import links
from support.fake_bundle import write_fake_bundle

NAMES = [
    *("../evil", "/evil", "a/../../evil", "a/./b", "a//b", ".", "..", "", "a/", "~/../x/.."),
    *("C:/evil", "C:evil", "a\\b", "\\\\host\\share", "a\0b", "a\nb", "a\x1b[31m", "a\u202eb"),
    *("x" * 256, "/".join(["x" * 200] * 6), MANIFEST, "unet/ControlNext.JSON", "con.", "a "),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_file_has_a_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(BundleError, match="is no name of a file in a bundle") as caught:
        check_names(["unet/model.onnx", name])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "twins",
    [
        ("unet/model.onnx", "unet/Model.onnx"),
        ("UNET/model.onnx", "unet/model.onnx"),
        ("é.json", unicodedata.normalize("NFD", "é.json")),
        ("straße", "strasse"),
    ],
)
def test_no_two_names_are_one_on_some_disks(twins: tuple[str, str]) -> None:
    with pytest.raises(BundleError, match="which some disks take for one"):
        check_names(twins)


def test_a_name_is_not_that_of_a_directory_of_another() -> None:
    with pytest.raises(BundleError, match="is no name of a file"):
        check_names(["unet", "unet/model.onnx"])


def test_names_of_bundles_are_accepted() -> None:
    check_names(["unet/model.onnx", "unet/model.onnx.data", "scheduler/scheduler_config.json", "Ünï/x-1_2.z"])


def test_a_name_in_the_manifest_is_checked_when_it_is_read(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle")
    content = json.loads((bundle / MANIFEST).read_text())
    content["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}
    (bundle / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"files has '\.\./secret'"):
        read_manifest(bundle)


@pytest.mark.parametrize("directory", [False, True])
def test_a_link_does_not_lead_out_of_the_bundle(directory: bool, tmp_path: Path) -> None:
    """Even to a file of the right size: whoever made the bundle does not choose what else is read."""
    bundle = write_fake_bundle(tmp_path / "bundle")
    moved = bundle / "unet" if directory else bundle / "unet" / "model.onnx"
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model.onnx is a link to .*outside of the bundle"):
        check_size(bundle, read_manifest(bundle), "unet/model.onnx")


def test_links_of_a_hubs_cache_lead_to_its_blobs_alone(tmp_path: Path) -> None:
    bundle = links.from_hub_cache(write_fake_bundle(tmp_path / "bundle"), tmp_path / "models--me--toy")
    file = bundle / "unet" / "model.onnx"
    assert check_size(bundle, read_manifest(bundle), "unet/model.onnx") == file
    other = tmp_path / "models--you--secret" / "blobs" / "blob"
    other.parent.mkdir(parents=True)
    os.link(file.resolve(), other)
    file.unlink()
    file.symlink_to(other)
    with pytest.raises(BundleError, match="outside of the bundle"):
        check_size(bundle, read_manifest(bundle), "unet/model.onnx")


def test_a_bundle_may_be_reached_by_a_link(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(bundle)
    assert check_size(tmp_path / "link", read_manifest(bundle), "unet/model.onnx").is_file()


@pytest.mark.parametrize("name", [MANIFEST, "engines"])
def test_neither_the_manifest_nor_caches_are_elsewhere(name: str, tmp_path: Path) -> None:
    """A run writes its caches into the bundle."""
    bundle = write_fake_bundle(tmp_path / "bundle")
    (tmp_path / "outside").mkdir()
    if (bundle / name).exists():
        (bundle / name).rename(tmp_path / "outside" / name)
    (bundle / name).symlink_to(tmp_path / "outside" / (name if name == MANIFEST else ""))
    with pytest.raises(BundleError, match=f"{name} is a link to .*outside of the bundle"):
        read_manifest(bundle)
