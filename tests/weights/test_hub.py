"""Repositories on the hub, over HTTP on loopback: what is downloaded, what serves offline, every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.choices import choose_base
from controlnext.weights.weight_source import resolve
from support import stub_hub
from support.cli import Cli
from support.hub_client import connect, forget_sessions
from support.stub_hub import GATED, Repository, StubHub, commit_of
from support.weights_models import SDXL, rewrite_json

MODEL = "somebody/model"
FILES = [
    "base/model_index.json",
    "base/scheduler/scheduler_config.json",
    "base/unet/config.json",
    "base/unet/diffusion_pytorch_model.safetensors",
    "base/vae/config.json",
    "base/vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, with files beside it that nobody needs."""
    folder = Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "all"))
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/flax_model.msgpack", "README.md"):
        (folder / "base" / name).touch()
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A hub with one repository, ``somebody/model``, and an empty cache."""
    with stub_hub.serve() as hub:
        hub.repositories[MODEL] = Repository(folder)
        connect(hub, tmp_path, monkeypatch)
        yield hub
    forget_sessions()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Set what ``HF_HUB_OFFLINE=1`` sets, which the library reads when it is imported."""

    def start() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        forget_sessions()

    return start


@pytest.fixture
def unplug(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nobody answers any more."""
    return lambda: monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def load(
    base: object = f"{MODEL}/base", control: object = f"{MODEL}/control.safetensors", **others: object
) -> Checkpoint:
    return load_checkpoint(SDXL, base=base, control=control, **others)


def base_files(place: str = f"{MODEL}/base") -> tuple[list[str], str]:
    """Which files of a base are found, and their commit."""
    found = resolve(place, partial(choose_base, SDXL, ()))
    names = [path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()]
    return choose_base(SDXL, (), sorted(names)), found.revision


def refusal(**given: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_needed_is_downloaded_and_no_more(folder: Path, hub: StubHub) -> None:
    checkpoint = load()
    assert sorted(hub.downloads) == [*FILES, "control.safetensors"]
    commit = commit_of(folder)
    assert [(source.name, source.detail) for source in checkpoint.sources] == [
        (f"{MODEL}/base", f"unet/diffusion_pytorch_model.safetensors@{commit}"),
        (f"{MODEL}/base", f"vae/diffusion_pytorch_model.safetensors@{commit}"),
        (f"{MODEL}/control.safetensors", f"@{commit}"),
    ]


@pytest.mark.parametrize("given", ["canny", "canny/controlnet.safetensors"])
def test_a_control_brings_its_unet_tensors(folder: Path, hub: StubHub, given: str) -> None:
    """The same for the directory and for the file in it."""
    bias = publish(folder)
    checkpoint = load(folder / "base", f"{MODEL}/{given}")
    assert sorted(hub.downloads) == ["canny/controlnet.safetensors", "canny/unet.safetensors"]
    assert torch.equal(checkpoint.networks["unet"].tensors["conv_in.bias"], bias + 0.5)
    assert checkpoint.sources[-1].name == f"{MODEL}/canny"


def publish(folder: Path) -> torch.Tensor:
    """Put a control and the increment 0.5 of a bias into ``canny/``; returns the base's bias."""
    (folder / "canny").mkdir()
    shutil.copy(folder / "control.safetensors", folder / "canny/controlnet.safetensors")
    save_file({"conv_in.bias": torch.full((32,), 0.5)}, folder / "canny/unet.safetensors")
    return load_file(folder / "base/unet/diffusion_pytorch_model.safetensors")["conv_in.bias"]


@pytest.mark.parametrize("given", ["", "/vae", "/vae/diffusion_pytorch_model.safetensors"])
def test_a_vae_comes_with_its_configuration(folder: Path, hub: StubHub, given: str) -> None:
    rewrite_json(folder / "base/vae/config.json", force_upcast=False)
    checkpoint = load(folder / "base", folder / "control.safetensors", vae=f"{MODEL}/base{given}")
    assert sorted(hub.downloads) == FILES[-2:]
    assert checkpoint.networks["vae"].config["force_upcast"] is False


def test_a_vae_that_is_replaced_is_not_downloaded(folder: Path, hub: StubHub) -> None:
    load(control=folder / "control.safetensors", vae=folder / "base/vae")
    assert sorted(hub.downloads) == FILES[:-1]


@pytest.mark.parametrize("how", ["offline", "unplug"])
def test_what_was_downloaded_once_serves_without_the_hub(
    folder: Path, hub: StubHub, request: pytest.FixtureRequest, how: str
) -> None:
    """Although most files of the repository were never downloaded."""
    publish(folder)
    given = {"control": f"{MODEL}/canny", "vae": f"{MODEL}/base/vae"}
    before = load(**given)
    request.getfixturevalue(how)()
    hub.downloads.clear()
    after = load(**given)
    assert hub.downloads == []
    assert after.sources == before.sources


def test_offline_the_commit_that_was_downloaded_last_serves(
    folder: Path, hub: StubHub, offline: Callable[[], None], tmp_path: Path
) -> None:
    base_files()
    hub.repositories[MODEL].folder = Path(shutil.copytree(folder, tmp_path / "newer"))
    newer = base_files()
    offline()
    assert base_files() == newer
    assert newer == ([name.removeprefix("base/") for name in FILES], commit_of(tmp_path / "newer"))


@pytest.mark.usefixtures("hub")
def test_without_a_download_the_message_says_why_the_hub_is_not_asked(offline: Callable[[], None]) -> None:
    offline()
    message = refusal()
    assert "offline mode is enabled" in message
    assert "it was not downloaded before" in message


def test_without_a_connection_and_a_download_the_message_says_so(
    hub: StubHub, unplug: Callable[[], None]
) -> None:
    unplug()
    assert "the hub cannot be reached (" in refusal()
    assert hub.downloads == []


def test_a_download_of_something_else_does_not_serve(hub: StubHub, unplug: Callable[[], None]) -> None:
    load(base=hub.repositories[MODEL].folder / "base")
    unplug()
    message = refusal(control=hub.repositories[MODEL].folder / "control.safetensors")
    assert "the earlier download lacks files: hub repository somebody/model has nothing that fits" in message


def test_a_network_that_a_download_did_not_get_to_is_told(
    folder: Path, hub: StubHub, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite_json(folder / "base/model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    assert "text_encoder" not in load(control=folder / "control.safetensors").networks
    assert "the text_encoder that its model_index.json names is missing" in caplog.text
    assert hub.downloads


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", "feature%2Fbetter", "commit"])
def test_a_revision_is_given_behind_an_at(
    folder: Path, hub: StubHub, offline: Callable[[], None], tmp_path: Path, revision: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    hub.repositories[MODEL].revisions[revision.replace("%2F", "/")] = other
    given = f"{MODEL}@{commit_of(other) if revision == 'commit' else revision}"
    (other / "base/feature_extractor").mkdir()
    (other / "base/feature_extractor/preprocessor_config.json").write_text("{}")
    files, commit = base_files(f"{given}/base")
    assert commit == commit_of(other)
    assert "feature_extractor/preprocessor_config.json" in files
    offline()
    assert base_files(f"{given}/base") == (files, commit)


def test_an_unknown_revision_is_named(hub: StubHub) -> None:
    message = refusal(control=f"{MODEL}@v9/control.safetensors")
    assert f"{MODEL} has no revision v9" in message
    assert f"{hub.url}/{MODEL}" in message


def test_a_repository_without_what_is_asked_for_lists_its_weights(hub: StubHub) -> None:
    message = refusal(control=f"{MODEL}/vidit_depth")
    assert "nothing that fits in vidit_depth; its weights are base/unet/" in message
    assert hub.downloads == []


@pytest.mark.parametrize("kind", ["list", "file"])
def test_a_gated_repository_says_how_to_get_access(hub: StubHub, kind: str) -> None:
    """The hub refuses to list some, and of others to give the files."""
    hub.repositories[MODEL].refuses[kind] = GATED
    assert f"{MODEL} is gated: accept its licence at {hub.url}/{MODEL}, then log in" in (message := refusal())
    assert "`hf auth login` or set HF_TOKEN" in message


@pytest.mark.usefixtures("hub")
def test_a_mistyped_id_says_that_there_is_no_such_repository() -> None:
    message = refusal(control="somebdy/model")
    assert message.startswith(
        "somebdy/model: no such file or directory here, and the hub shows no repository"
    )
    assert "check the spelling" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("list", 403, "with a valid token"),
        ("file", 403, "with a valid token"),
        # for files huggingface_hub tries these again for half a minute
        ("list", 429, "try again later"),
        ("list", 503, "cannot serve somebody/model now"),
    ],
)
def test_other_answers_of_the_hub_are_one_line(hub: StubHub, kind: str, status: int, said: str) -> None:
    hub.repositories[MODEL].refuses[kind] = status
    message = refusal()
    assert said in message
    assert str(status) in message


def test_an_id_that_the_hub_cannot_have_is_no_hub_id(hub: StubHub) -> None:
    assert "some--body/model is not a hub id" in refusal(control="some--body/model")
    assert "not a hub id (owner/name[@revision][/directory or file])" in refusal(control="model.onnx")
    assert hub.downloads == []


@pytest.mark.parametrize("kind", ["list", "file"])
def test_what_was_downloaded_once_serves_when_access_is_lost(hub: StubHub, kind: str) -> None:
    before = base_files()
    hub.repositories[MODEL].refuses[kind] = GATED
    assert base_files() == before


def test_the_command_line_says_it_in_one_line(hub: StubHub, cli: Cli, tmp_path: Path) -> None:
    hub.repositories[MODEL].refuses["file"] = GATED
    sources = [f"--base={MODEL}/base", f"--control={MODEL}/control.safetensors"]
    done = cli("export", "--model=sdxl", *sources, f"--output={tmp_path / 'out'}")
    assert done.status == 2
    assert "is gated: accept its licence at" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
