"""A full disk at any moment: one line and status 1; nothing half-written stays, what was there does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from PIL import Image

from controlnext.bundle.format import ENGINES
from controlnext.bundle.reader import read_manifest
from controlnext.errors import WorkError
from controlnext.evaluation import report
from controlnext.runtime.media.video_files import ClipFiles
from support.bench_results import made_up, measured
from support.cli import Cli, assert_refused
from support.exports import export_tiny
from support.fake_bundle import write_fake_bundle
from support.small_disk import small_disk

KIB = 1 << 10
RUN = ["--backend", "onnxruntime", "--device", "cpu", "--threads", 1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of prompts, with a control image and jobs beside it."""
    directory = tmp_path_factory.mktemp("full")
    Image.effect_noise((64, 64), 90).convert("RGB").save(directory / "control.png")
    lines = [
        f'{{"id": "job-{n}", "prompt": "a cat", "seed": {n}, "control_image": "control.png",'
        f' "num_inference_steps": 2}}\n'
        for n in range(6)
    ]
    (directory / "jobs.jsonl").write_text("".join(lines))
    return write_fake_bundle(directory / "bundle", "sd15", encoder=True)


def listing(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory, but for the lock of a bulk run."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in directory.rglob("*")
        if path.name != ".lock"
    }


def image_arguments(bundle: Path, output: Path) -> list[object]:
    control = bundle.parent / "control.png"
    return ["run", bundle, "--control-image", control, "--prompt=a", "--steps=2", "--output", output, *RUN]


def test_an_image(toy: Path, cli: Cli, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * KIB) as disk:
        (disk / "image.png").write_bytes(b"earlier")
        before = listing(disk)
        done = cli(*image_arguments(toy, disk / "image.png"))
        assert_refused(done, f"the disk that holds {disk}/image.png is full", status=1)
        assert listing(disk) == before


@pytest.mark.parametrize("names", range(2, 7))
def test_a_disk_without_room_for_names(toy: Path, cli: Cli, tmp_path: Path, names: int) -> None:
    """Of a directory, of a lock, of the file."""
    with small_disk(tmp_path / "disk", 1 << 20, f"nr_inodes={names}") as disk:
        done = cli(*image_arguments(toy, disk / "image.png"))
        if done.status:
            assert_refused(done, "is full", status=1)
            assert not listing(disk)


def test_optimized_graphs_are_not_kept_then(toy: Path, cli: Cli, tmp_path: Path) -> None:
    """The image is the same; whatever the room, no part of a graph is taken for one."""
    home = Path(shutil.copytree(toy.parent, tmp_path / "home"))
    wanted, image = tmp_path / "wanted.png", tmp_path / "image.png"
    assert not cli(*image_arguments(home / "bundle", wanted)).status
    kept = sum(path.stat().st_size for path in (home / "bundle" / ENGINES).rglob("*") if path.is_file())
    shutil.rmtree(home / "bundle" / ENGINES)
    needed = sum(-(-path.stat().st_size // (4 * KIB)) * 4 * KIB for path in home.rglob("*") if path.is_file())
    for room in (0, kept // 3, kept):
        with small_disk(tmp_path / "disk", needed + room) as disk:
            there = Path(shutil.copytree(home, disk / "home"))
            for _ in range(2):
                assert not cli(*image_arguments(there / "bundle", image)).status
                assert image.read_bytes() == wanted.read_bytes()
            assert not list((there / "bundle").rglob("*.partial"))


@pytest.mark.parametrize("size", [4 * KIB, 12 * KIB, 16 * KIB, 24 * KIB])
def test_a_bulk_run_goes_on_when_there_is_room(toy: Path, cli: Cli, tmp_path: Path, size: int) -> None:
    """Until then each result that is there is whole and in the ledger."""
    command = ["batch", toy, "--jobs", toy.parent / "jobs.jsonl", "--max-rows=2", *RUN]
    assert not cli(*command, "--output", tmp_path / "wanted").status
    wanted = {name: content for name, content in listing(tmp_path / "wanted").items() if ".png" in name}
    with small_disk(tmp_path / "disk", size) as disk:
        done = cli(*command, "--output", disk)
        assert done.status == 1, done.err
        assert "Traceback" not in done.err
        assert "full" in done.err or "No space left" in done.err
        found = {name: content for name, content in listing(disk).items() if name != "results.jsonl"}
        assert found.items() <= wanted.items()
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        assert not cli(*command, "--output", disk).status
        assert {n: c for n, c in listing(disk).items() if n != "results.jsonl"} == wanted


def test_an_engine(toy: Path, cli: Cli, tmp_path: Path) -> None:
    needed = sum(-(-path.stat().st_size // (4 * KIB)) * 4 * KIB for path in toy.rglob("*") if path.is_file())
    for room in (0, 16 * KIB, 64 * KIB):
        with small_disk(tmp_path / "disk", needed + room) as disk:
            bundle = Path(shutil.copytree(toy, disk / "bundle", ignore=shutil.ignore_patterns(ENGINES)))
            done = cli("build", bundle, "--backend=tensorrt-rtx")
            assert_refused(done, "No space left", status=1)
            assert not list(bundle.rglob("model.engine"))
            assert not list(bundle.rglob("*.partial"))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_a_clip(tmp_path: Path, name: str) -> None:
    frames = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(6)]
    with small_disk(tmp_path / "disk", 8 * KIB) as disk:
        (disk / "clip.mp4").write_bytes(b"earlier")
        before = listing(disk)
        with ClipFiles(disk / name) as files, pytest.raises(WorkError) as full:
            files.save(iter(frames))
        assert "full" in str(full.value) or "No space left" in str(full.value)
        assert listing(disk) == before


def test_results_of_a_benchmark(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    """Those of an earlier one stay, all of them or none."""
    results = made_up(measured("toy", "step", 1.0))
    monkeypatch.setattr("controlnext.bench.session.measure", lambda *_: results)
    with small_disk(tmp_path / "disk", 4 * KIB) as disk:
        (disk / "bench.md").write_text("earlier")
        assert_refused(cli("bench", toy, "--output", disk), "is full", status=1)
        assert listing(disk) == {"bench.md": b"earlier"}


def test_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_images", lambda *_: {})
    bundle = write_fake_bundle(tmp_path / "bundle", "sd15", text_encoders=False)
    run, comparison = MagicMock(), SimpleNamespace(rows=[])
    with small_disk(tmp_path / "disk", 4 * KIB) as disk:
        (disk / "report.html").write_text("earlier")
        with pytest.raises(WorkError, match="is full; nothing was written there"):
            report.write_report(disk / "report.html", read_manifest(bundle), run, comparison)
        assert listing(disk) == {"report.html": b"earlier"}


@pytest.mark.export
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_an_export(
    tiny_checkpoint: Callable[[str], Path], tiny: Callable[..., Path], tmp_path: Path, share: float
) -> None:
    size = sum(path.stat().st_size for path in tiny("sd15", "fp16").rglob("*"))
    with small_disk(tmp_path / "disk", int(share * size)) as disk:
        older = write_fake_bundle(disk / "bundle", "sd15", text_encoders=False)
        before = listing(disk)
        with pytest.raises(WorkError, match=r"full[;?] [Nn]othing was written there"):
            export_tiny("sd15", tiny_checkpoint("sd15"), "fp16", older, force=True)
        assert listing(disk) == before
