"""Bundles from the model hub and to it, over HTTP on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.bundle.card import model_card
from controlnext.bundle.manifest import ParityRow, Source
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, InputError
from controlnext.runtime import ImagePipeline, Pipeline
from support.fake_bundle import write_fake_bundle
from support.hub_site import go_offline, stand_in_hub
from support.image_calls import arguments
from support.stub_hub import GATED, USER, Repository, StubHub

NAME = "somebody/bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("pretrained") / "toy")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """An empty hub and an empty cache."""
    with stand_in_hub(tmp_path, monkeypatch) as hub:
        hub.root = tmp_path / "hub"
        yield hub


def test_a_bundle_is_pushed_and_pulled(hub: StubHub, bundle: Path) -> None:
    """The same image; built engines stay; what did not change is neither sent nor fetched again."""
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        (bundle / "engines").mkdir(exist_ok=True)
        (bundle / "engines" / "big.engine").write_bytes(b"x")
        address = pipe.push_to_hub(NAME, token="hf_pushed", licence="openrail++")
        wanted = pipe(**arguments()).latents
    files = read_manifest(bundle).files
    assert hub.commits == [sorted([*files, "controlnext.json", "README.md"])]
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    assert "Bearer hf_pushed" in hub.tokens
    with ImagePipeline.from_pretrained(NAME, device="cpu", cache=False, token="hf_pulled") as pipe:
        np.testing.assert_array_equal(pipe(**arguments()).latents, wanted)
    assert "Bearer hf_pulled" in hub.tokens
    hub.downloads.clear()
    Pipeline.from_pretrained(NAME, cache=False).close()
    assert hub.downloads == []


def test_only_changed_files_are_sent(hub: StubHub, bundle: Path, tmp_path: Path) -> None:
    """The card of the repository is its owner's."""
    with Pipeline.load(bundle, cache=False) as pipe:
        pipe.push_to_hub(NAME)
        first = hub.repositories[NAME].folder
        (first / "README.md").write_text("mine")
        pipe.push_to_hub(NAME)
        assert len(hub.commits) == 1
    changed = shutil.copytree(bundle, tmp_path / "changed")
    manifest = (changed / "controlnext.json").read_text()
    (changed / "controlnext.json").write_text(manifest.replace('"fp32"', '"fp32" ', 1))
    with Pipeline.load(changed, cache=False) as pipe:
        pipe.push_to_hub(NAME)
    assert hub.commits[1:] == [["controlnext.json"]]
    assert (hub.repositories[NAME].folder / "README.md").read_text() == "mine"


def test_a_branch_and_a_directory(hub: StubHub, bundle: Path, tmp_path: Path) -> None:
    with Pipeline.load(bundle, cache=False) as pipe:
        pipe.push_to_hub(NAME)
        pipe.push_to_hub(NAME, revision="int8", subfolder="small")
    assert "small/controlnext.json" in hub.commits[1]
    place = {"revision": "int8", "subfolder": "small", "cache_dir": tmp_path / "elsewhere"}
    hub.downloads.clear()
    with Pipeline.from_pretrained(NAME, cache=False, **place) as pipe:
        assert pipe.bundle.path.is_relative_to(tmp_path / "elsewhere")
    assert all(name.startswith("small/") for name in hub.downloads)
    with pytest.raises(BundleError, match=f"{NAME} has no revision other"):
        Pipeline.from_pretrained(NAME, revision="other")


def test_offline(hub: StubHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = Repository(bundle)
    with pytest.raises(BundleError, match="was not downloaded before"):
        Pipeline.from_pretrained(NAME, local_files_only=True)
    Pipeline.from_pretrained(NAME, cache=False).close()
    go_offline(monkeypatch)
    Pipeline.from_pretrained(NAME, cache=False).close()
    Pipeline.from_pretrained(NAME, cache=False, local_files_only=True).close()


def test_a_checkpoint_is_refused_before_it_is_fetched(
    hub: StubHub, tiny_checkpoint_dir: Path, bundle: Path
) -> None:
    """What a user of diffusers tries first, a directory that is not there, an argument without meaning."""
    hub.repositories[NAME] = Repository(tiny_checkpoint_dir / "base")
    with pytest.raises(BundleError, match=rf"{NAME} at the hub is not a bundle: it has no controlnext\.json"):
        Pipeline.from_pretrained(NAME)
    hub.repositories[NAME] = Repository(bundle)
    with pytest.raises(BundleError, match=r"it has no nowhere/controlnext\.json"):
        Pipeline.from_pretrained(NAME, subfolder="nowhere")
    with pytest.raises(InputError, match="torch_dtype is float16"):
        Pipeline.from_pretrained(NAME, torch_dtype="float16")
    assert hub.downloads == []


def test_a_name_without_an_owner_is_the_users(hub: StubHub, bundle: Path) -> None:
    with Pipeline.load(bundle, cache=False) as pipe:
        assert f"/{USER}/mine/commit/" in pipe.push_to_hub("mine")
    assert [*hub.repositories] == [f"{USER}/mine"]


def test_what_is_refused_is_one_line(hub: StubHub, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the hub shows no repository nobody/nothing"):
        Pipeline.from_pretrained("nobody/nothing")
    with pytest.raises(BundleError, match="neither a directory nor a hub id"):
        Pipeline.from_pretrained("a/b/c d")
    hub.repositories[NAME] = Repository(tmp_path, refuses={"file": GATED})
    with pytest.raises(BundleError, match=f"{NAME} is gated"):
        Pipeline.from_pretrained(NAME)
    hub.repositories[NAME] = Repository(tmp_path, refuses={"upload": 403})
    with (
        Pipeline.load(bundle, cache=False) as pipe,
        pytest.raises(BundleError, match=f"the hub refuses access to {NAME}"),
    ):
        pipe.push_to_hub(NAME)


def test_a_directory_needs_no_hub(bundle: Path, tmp_path: Path) -> None:
    """A saved bundle is a bundle, with a card."""
    with Pipeline.from_pretrained(str(bundle), cache=False) as pipe:
        saved = pipe.save_pretrained(tmp_path / "saved" / "mine")
        with pytest.raises(InputError, match="holds a bundle already"):
            pipe.save_pretrained(saved)
        assert pipe.save_pretrained(saved, force=True, licence="mit") == saved
    assert not (saved / "engines").exists()
    assert (saved / "README.md").read_text().startswith('---\nlicense: "mit"\n')
    Pipeline.from_pretrained(tmp_path / "saved", subfolder="mine", cache=False).close()


def test_the_card_says_what_it_is_made_of(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    manifest.sources.append(Source("base", "stabilityai/sdxl", detail="unet@abc"))
    manifest.sources.append(Source("control", "a|b.safetensors"))
    manifest.parity.append(ParityRow("image", "psnr", 51.234, 40.0, at_least=True))
    card = model_card(manifest, "me/mine")
    assert 'base_model: ["stabilityai/sdxl"]' in card
    assert "license:" not in card
    assert "| control | a\\|b.safetensors |" in card
    assert "| image | psnr | 51.2 | at least 40 |" in card
    assert 'Pipeline.from_pretrained("me/mine")' in card


_WITHOUT = """
import sys
sys.modules["huggingface_hub"] = None
from controlnext.errors import MissingDependencyError
from controlnext.runtime import Pipeline
try:
    Pipeline.from_pretrained("a/b")
except MissingDependencyError as error:
    print(error)
"""


def test_without_the_library_it_says_what_to_install() -> None:
    said = subprocess.check_output([sys.executable, "-c", _WITHOUT], text=True)
    assert 'huggingface_hub, which is not installed; run pip install "controlnext[hub]"' in said


@pytest.mark.parametrize("given", [None, 1, b"x", []])
def test_what_is_no_place_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"repo_or_path is .*; give a directory, a hub id or a location"):
        Pipeline.from_pretrained(given)  # type: ignore[arg-type]


def test_a_name_that_is_too_long_is_no_bundle() -> None:
    for load in (Pipeline.load, Pipeline.from_pretrained):
        with pytest.raises(BundleError, match="it cannot be looked into: File name too long"):
            load("x" * 3000)  # type: ignore[operator]


def test_a_location_without_a_name_is_refused_as_it_is() -> None:
    with pytest.raises(InputError, match="bundle s3:// names no directory"):
        Pipeline.from_pretrained("s3://")


def test_other_bundles_of_the_repository_are_not_fetched(hub: StubHub, bundle: Path, tmp_path: Path) -> None:
    """Neither for the one at its top, nor for one in a directory, however that is written."""
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        pipe.push_to_hub(NAME)
        pipe.push_to_hub(NAME, subfolder="fp32/small/")
    Pipeline.from_pretrained(NAME, cache=False).close()
    assert not [one for one in hub.downloads if "small" in one]
    hub.downloads.clear()
    asked: Any = {"subfolder": "./fp32/small/", "cache_dir": tmp_path / "another", "cache": False}
    with Pipeline.from_pretrained(f"{NAME}@main", **asked) as pipe:
        assert pipe.bundle.path.parts[-2:] == ("fp32", "small")
    assert hub.downloads
    assert all("small" in one for one in hub.downloads)


@pytest.mark.parametrize("subfolder", ["../up", "/root", 1, b"x"])
def test_a_subfolder_is_within_the_repository(bundle: Path, subfolder: Any) -> None:
    with pytest.raises(InputError, match=r"subfolder is .*; give a directory within the repository"):
        Pipeline.from_pretrained(bundle, subfolder=subfolder)
    with (
        Pipeline.load(bundle, device="cpu", cache=False) as pipe,
        pytest.raises(InputError, match="subfolder is"),
    ):
        pipe.push_to_hub(NAME, subfolder=subfolder)


@pytest.mark.parametrize("place", ["{bundle}", "hf://owner/name"])
def test_a_revision_is_of_ids_of_the_hub(bundle: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"revision is 'v1', but .* is no id of the hub"):
        Pipeline.from_pretrained(place.format(bundle=bundle), revision="v1")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"repo_id": None}, "repo_id is None; it must be owner/name"),
        ({"repo_id": ""}, "repo_id is ''; it must be owner/name"),
        ({"private": "yes"}, "private is 'yes'; it must be True or False"),
        ({"create_pr": 1}, "create_pr is 1; it must be True or False"),
        ({"repo_id": "a/b/c"}, "repo_id is 'a/b/c', which is no id; give owner/name"),
        ({"revision": 1}, "revision is 1; it must be a text"),
        ({"commit_message": ""}, "commit_message is ''; it must be a text"),
        ({"licence": 3}, "licence is 3; it must be a text"),
        ({"token": "hf_secret\n"}, "token is not the text of a token; give it without"),
    ],
)
def test_what_no_hub_takes_is_refused(hub: StubHub, bundle: Path, given: dict[str, Any], words: str) -> None:
    with (
        Pipeline.load(bundle, device="cpu", cache=False) as pipe,
        pytest.raises((InputError, BundleError), match=words),
    ):
        pipe.push_to_hub(**{"repo_id": NAME, **given})
    assert hub.commits == []


def test_where_a_bundle_cannot_be_saved_is_told(bundle: Path, tmp_path: Path) -> None:
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        for directory in (None, 3):
            with pytest.raises(InputError, match=r"save_directory is .*; give the path of a new directory"):
                pipe.save_pretrained(directory)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"cannot be copied to .*: File name too long"):
            pipe.save_pretrained(tmp_path / ("x" * 300))


def test_a_damaged_bundle_is_neither_sent_nor_copied(hub: StubHub, bundle: Path, tmp_path: Path) -> None:
    """A byte that was changed since the export."""
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    with Pipeline.load(damaged, device="cpu", cache=False) as pipe:
        graph = damaged / "unet" / "model.onnx"
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.unlink()
        graph.write_bytes(content)
        with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
            pipe.push_to_hub(NAME)
        with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
            pipe.save_pretrained(tmp_path / "copy")
    assert hub.commits == []
    assert not (tmp_path / "copy").exists()
