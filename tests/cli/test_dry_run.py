"""``export --dry-run`` tells what an export fetches, reads, writes and takes, and does nothing of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.families import get_family
from controlnext.weights import load_checkpoint
from support.cli import Cli, Done, assert_refused
from support.hub_site import go_offline, stand_in_hub
from support.stub_hub import GATED, Repository, StubHub, commit_of

MODEL = "somebody/model"
HUB = [f"--base={MODEL}/base", f"--control={MODEL}/control.safetensors"]
DISK, MEMORY = 1.5, 1.5
PEAK = """
from controlnext.bench.worker import peak_memory
from controlnext.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(peak_memory())
"""
"""A program that is the command line and prints the most memory that it had."""
"""The factors within which the estimates for the tiny model are."""


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, with a file that is not needed."""
    folder = Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "all"))
    (folder / "base/unet/flax_model.msgpack").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with stand_in_hub(tmp_path, monkeypatch) as hub:
        hub.repositories[MODEL] = Repository(folder)
        yield hub


def _dry(cli: Cli, output: Path, *options: object) -> Done:
    return cli("export", "--model=sdxl", f"--output={output}", "--dry-run", *options)


def _plan(cli: Cli, output: Path, *options: object) -> dict[str, Any]:
    done = _dry(cli, output, "--json", *options)
    assert (done.status, done.err) == (0, ""), done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def _local(folder: Path) -> list[str]:
    return [f"--base={folder}/base", f"--control={folder}/control.safetensors"]


def test_what_would_be_fetched_is_what_is_fetched(
    cli: Cli, hub: StubHub, folder: Path, tmp_path: Path
) -> None:
    """Names, sizes and commit; then that all is here."""
    plan = _plan(cli, tmp_path / "new", *HUB)
    assert hub.downloads == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all"]
    files = [file for source in plan["sources"] for file in source["files"]]
    assert not any(file["here"] for file in files)
    assert {source["revision"] for source in plan["sources"]} == {commit_of(folder)}
    assert plan["basis"] == "the published architecture"
    load_checkpoint(get_family("sdxl"), base=f"{MODEL}/base", control=f"{MODEL}/control.safetensors")
    assert sorted(hub.downloads) == sorted(file["name"] for file in files)
    sizes = {file["name"]: file["bytes"] for file in files}
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}
    assert (plan["fetch"], plan["read"]) == (sum(sizes.values()), 0)
    after = _plan(cli, tmp_path / "new", *HUB)
    assert (after["fetch"], after["read"]) == (0, sum(sizes.values()))
    assert after["basis"] == "the weights themselves"


def test_a_vae_whose_configuration_is_not_here_may_have_another_precision(
    cli: Cli, hub: StubHub, tmp_path: Path
) -> None:
    """The published one overflows in float16; the one that is given may not."""
    done = _dry(cli, tmp_path / "new", *HUB, f"--vae={MODEL}/base")
    assert "depends on the config.json of --vae, which is not here yet" in done.out, done.err
    assert hub.downloads == []


def test_offline_the_files_of_an_earlier_download_are_told(
    cli: Cli, hub: StubHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_checkpoint(get_family("sdxl"), base=f"{MODEL}/base", control=folder / "control.safetensors")
    go_offline(monkeypatch)
    hub.downloads.clear()
    plan = _plan(cli, tmp_path / "new", f"--base={MODEL}/base", f"--control={folder}/control.safetensors")
    assert (plan["fetch"], hub.downloads) == (0, [])
    assert "offline mode is enabled" in plan["sources"][0]["problem"]
    assert_refused(_dry(cli, tmp_path / "new", *HUB[:1], "--control=other/model"), "offline mode is enabled")


def test_what_cannot_be_fetched_is_told_as_in_an_export(cli: Cli, hub: StubHub, tmp_path: Path) -> None:
    output = tmp_path / "new"
    assert_refused(_dry(cli, output, *HUB[:1], "--control=somebdy/model"), "no repository somebdy/model")
    assert_refused(_dry(cli, output, *HUB[:1], f"--control={MODEL}/none"), "nothing that fits in none")
    assert_refused(_dry(cli, output), "no control weights are given")
    hub.repositories[MODEL].refuses["list"] = GATED
    assert_refused(_dry(cli, output, *HUB), "is gated: accept its licence")
    assert hub.downloads == []


def test_settings_that_an_export_refuses_are_refused_before_anything_is_fetched(
    cli: Cli, hub: StubHub, tmp_path: Path
) -> None:
    for option, words in (
        ("--scheduler=foo", "--scheduler 'foo' is not a setting"),
        ("--scheduler=prediction_type=zzz", "prediction_type"),
        ("--lora-rank=99999", "--lora-rank is 99999; it must be an integer from 0 to 4096"),
        ("--vae=nobody/nothing", "error: --vae nobody/nothing: no such file"),
    ):
        done = _dry(cli, tmp_path / "new", *HUB, option)
        assert done.status == 2
        assert words in done.err
    assert hub.downloads == []


def test_the_usual_base_is_named_where_none_was_given(
    cli: Cli, hub: StubHub, folder: Path, tmp_path: Path
) -> None:
    """Here the hub has no such repository."""
    control = f"--control={folder}/control.safetensors"
    assert hub.repositories
    assert_refused(
        _dry(cli, tmp_path / "new", control),
        "no --base is given, and of the usual one of sdxl: stabilityai/stable-diffusion-xl-base-1.0: no such",
    )


def test_what_is_read_on_this_machine_is_told(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """For people, with sizes; the trained tensors beside a control only where no others are given."""
    shutil.copy(folder / "control.safetensors", folder / "controlnet.safetensors")
    save_file({"conv_in.bias": torch.full((32,), 0.5)}, folder / "unet.safetensors")
    control = f"--control={folder}/controlnet.safetensors"
    done = _dry(cli, tmp_path / "new", f"--base={folder}/base", control, "--no-verify")
    assert done.status == 0, done.err
    for words in (
        "sdxl, variant sdxl, fp16",
        "unet.safetensors",
        "To read: ",
        "vae_decoder",
        "Memory: about",
    ):
        assert words in done.out
    assert "To fetch" not in done.out
    assert "comparison" not in done.out
    given = [f"--base={folder}/base", control, f"--unet-weights={folder}/unet.safetensors"]
    sources = _plan(cli, tmp_path / "new", *given, "--unet-increments")["sources"]
    names = {source["argument"]: [file["name"] for file in source["files"]] for source in sources}
    assert names["control"] == ["controlnet.safetensors"]
    assert names["unet_weights"] == ["unet.safetensors"]


def test_a_place_that_is_taken_is_told_after_the_plan(cli: Cli, folder: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / MANIFEST).write_text("precious")
    abandoned = tmp_path / ".taken.00000000.partial"
    abandoned.mkdir()
    done = _dry(cli, taken, *_local(folder))
    assert done.status == 2
    assert "Graphs" in done.out
    assert "holds a bundle already; give --force to replace it" in done.err
    assert _plan(cli, taken, *_local(folder), "--force")["place"] == "a bundle, which is replaced"
    assert _plan(cli, tmp_path / "free", *_local(folder))["place"] == "free"
    assert (taken / MANIFEST).read_text() == "precious"
    assert abandoned.exists()


def test_a_place_that_cannot_be_written_is_told(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = _dry(cli, tmp_path / "file" / "new", *_local(folder))
    assert done.status == 2
    assert "file is not a directory that may be written; give --output a writable path" in done.err


def test_random_weights_are_read_from_nowhere(cli: Cli, tmp_path: Path) -> None:
    """Of the full size: two gigabytes of SD1.5 in float16, half a gigabyte more in int8 as ever."""
    options = ["export", "--model=sd15", f"--output={tmp_path / 'new'}", "--dry-run", "--json"]
    done = cli(*options, "--random-weights=0")
    plan = json.loads(done.out)
    assert (plan["sources"], plan["fetch"], plan["compared"]) == ([], 0, False)
    assert 2.0e9 < plan["estimate"]["disk"] < 2.3e9


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_size_of_the_bundle_is_within_the_factor(
    cli: Cli, tiny: partial[Path], tiny_checkpoint_dir: Path, tmp_path: Path, precision: str
) -> None:
    manifest: Manifest = read_manifest(tiny("sdxl", precision))
    real = sum(entry.bytes for entry in manifest.files.values())
    plan = _plan(cli, tmp_path / "new", f"--precision={precision}", *_local(tiny_checkpoint_dir))
    assert real / DISK < plan["estimate"]["disk"] < real * DISK
    planned = {graph["name"]: graph["precision"] for graph in plan["estimate"]["graphs"]}
    assert planned == {name: graph.precision for name, graph in manifest.graphs.items()}


@pytest.mark.export
def test_the_memory_of_an_export_is_within_the_factor(
    cli: Cli, tiny_checkpoint_dir: Path, tmp_path: Path
) -> None:
    """The peak of a process of its own, with the comparison."""
    output = tmp_path / "new"
    plan = _plan(cli, output, *_local(tiny_checkpoint_dir))
    command = ["export", "--model=sdxl", f"--output={output}", *_local(tiny_checkpoint_dir), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    peak = int(done.stdout.split()[-1])
    assert peak / MEMORY < plan["memory"] < peak * MEMORY
