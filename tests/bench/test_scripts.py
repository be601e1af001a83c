"""Every script of ``examples/`` and ``benchmarks/`` runs, with one step of a small model."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import data
import demo
import distill
import evaluate
import full_size
import full_size_engines
import int8
import licences
import lora_room
import operators
import pictures
import pytest
import speed
import torch_model
import train
import typer
import vae_tiling
from draw import SIZE
from PIL import Image

import controlnext.export
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.cli.app import make_application
from controlnext.families import get_family
from controlnext.weights import Checkpoint, load_checkpoint
from support.cli import Cli
from support.fake_bundle import write_fake_bundle

ROOT = Path(__file__).parents[2]
Tiny = Callable[..., Path]


def test_no_script_is_forgotten() -> None:
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py"))
    tested = set(re.findall(r"(\w+)\.main\(", tests))
    files = [file for folder in ("benchmarks", "examples") for file in (ROOT / folder).rglob("*.py")]
    # which kills.py starts as a process
    assert {file.stem for file in files if "__main__" in file.read_text()} - {"kill_server"} == tested


def test_the_licences_are_written_into_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before {licences.BEGIN} an old table {licences.END} after\n")
    monkeypatch.setattr(licences, "PAGE", page)
    licences.main()
    text = page.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after\n")
    assert "| numpy | " in text
    assert "an old table" not in text


@pytest.mark.export
def test_every_stage_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage makes a step; the files of the last one are a model that can be exported."""
    monkeypatch.setattr(data, "Pool", ThreadPool)
    for stage in train.STAGES:
        small = ["--steps", "1", "--batch", "4", "--drawings", "8"]
        train.main(["--stage", stage, "--model", str(tmp_path), *small])
    load_checkpoint(
        get_family("sdxl"),
        base=tmp_path / "base",
        control=tmp_path / "controlnet.safetensors",
        unet_weights=tmp_path / "unet.safetensors",
        unet_increments=True,
        preview_vae=tmp_path / "tiny_vae",
    )


@pytest.mark.export
def test_the_distillation_writes_a_lora_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps change every layer that the script names."""
    monkeypatch.setattr(data, "Pool", ThreadPool)
    monkeypatch.setattr(distill, "TEACHER_STEPS", 1)
    monkeypatch.setattr(distill, "RUNS", (2,))
    file = tmp_path / "lora.safetensors"
    distill.main(["--output", str(file), "--steps", "2", "--batch", "2", "--drawings", "4"])
    plain, distilled = (torch_model.reference(lora=lora).denoiser.state_dict() for lora in ([], [str(file)]))
    changed = {name for name, tensor in plain.items() if not tensor.equal(distilled[name])}
    assert changed == {
        name for name in plain if name.endswith(tuple(f"{end}.weight" for end in distill.LAYERS))
    }


def test_the_demo_draws_each_outline_and_ends_with_what_to_try(
    shapes_bundle_fp16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three commands, which the command line takes, of files that are there."""
    strips = tmp_path / "demo.png"
    demo.main([str(shapes_bundle_fp16), str(strips), "--count", "2", "--steps", "1"])
    assert Image.open(strips).size == (2 * SIZE, 2 * SIZE)
    said = capsys.readouterr().out
    assert said.count("% of the shape") == 2
    commands = [
        shlex.split(line, comments=True)[1:]
        for line in said.replace("\\\n", "").splitlines()
        if "  controlnext" in line
    ]
    assert [command[0] for command in commands] == ["run", "serve", "verify"]
    assert Path(commands[0][commands[0].index("--control-image") + 1]).is_file()
    application = typer.main.get_command(make_application())
    for command, *arguments in commands:
        application.commands[command].make_context(command, arguments)


def test_the_pictures_of_the_readme_are_made(shapes_bundle_fp16: Path, tmp_path: Path) -> None:
    """A row for each chosen drawing, a frame for each step; of one bundle there is no difference."""
    pictures.main([*[str(shapes_bundle_fp16)] * 3, "--output", str(tmp_path), "--steps", "2"])
    sheet = Image.open(tmp_path / "precisions.png")
    assert sheet.width == len(pictures.TITLES) * (SIZE + pictures.GAP) - pictures.GAP
    step = sheet.width - SIZE, pictures.HEAD
    assert not any(high for _, high in sheet.crop((*step, sheet.width, SIZE)).getextrema())
    assert Image.open(tmp_path / "steps.webp").n_frames == 2
    assert Image.open(tmp_path / "outline.png").size == (SIZE, SIZE)


@pytest.mark.parametrize("engine", [True, False])
def test_the_evaluation_scores_each_scale(
    engine: bool, shapes_bundle_fp16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples are of the engine and of PyTorch."""
    options = ["--count", "2", "--steps", "1", "--scales", "0", "1", "--sheet", str(tmp_path / "sheet.png")]
    evaluate.main([*options, *(["--bundle", str(shapes_bundle_fp16)] if engine else [])])
    assert capsys.readouterr().out.count("IoU") == 2
    assert Image.open(tmp_path / "sheet.png").size == (2 * SIZE, 3 * SIZE)


def test_the_evaluation_compares_with_kept_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With those of the same run, and with those of the model without the LoRA."""
    kept, lora = tmp_path / "kept.npy", ["--lora", str(distill.LORA)]
    options = ["--count", "1", "--steps", "1", "--scales", "1", "--sampler", "lcm", "--guidance", "1"]
    evaluate.main([*options, "--save", str(kept)])
    for more in ([], lora):
        evaluate.main([*options, *more, "--against", str(kept)])
    _, same, other = capsys.readouterr().out.splitlines()
    assert "PSNR 200.0 dB" in same
    assert 10 < float(other.partition("PSNR ")[2].split()[0]) < 60


def test_the_speed_is_told_with_the_scores(
    shapes_bundle_fp16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images as they are, and of images that multiply less."""
    few = ["--count", "1", "--steps", "2", "--rounds", "1", "--threads", "1", "--only", "engine*"]
    speed.main([str(shapes_bundle_fp16), *few, "--guidance-end", "0"])
    out = capsys.readouterr().out
    assert "guidance to 0" in out
    assert out.count("IoU") >= 2


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, cli: Cli, tiny: Tiny) -> list[str]:
    """Run the benchmarks' commands in this process, with small models in place of exports; return the names
    of the graphs to export."""
    asked: list[str] = []
    real = controlnext.export.export_bundle

    def export(checkpoint: Checkpoint, _precision: str, bundle: Path, **_options: object) -> Manifest:
        asked.extend(graph.name for graph in checkpoint.family.graphs)
        if checkpoint.family.task == "video":
            with monkeypatch.context() as patch:
                patch.setattr(controlnext.export, "export_bundle", real)
                shutil.copytree(tiny("svd"), bundle)
        else:
            write_fake_bundle(bundle, checkpoint.family.name)
        return read_manifest(bundle)

    def run(command: list[str]) -> tuple[float, int]:
        if command[1] == full_size.__file__:
            full_size.main(command[2:])
        else:
            assert command[:3] == [sys.executable, "-m", "controlnext"]
            done = cli(*command[3:])
            assert done.status == 0, done.err
        return 1.0, 10**9

    monkeypatch.setattr(controlnext.export, "export_bundle", export)
    monkeypatch.setattr(full_size, "run", run)
    return asked


PROMPTED = [trial for trial in full_size.TRIALS if "--ip-adapter" in trial.options]
"""Trials with IP-Adapters, which the small models in place of exports do not have."""


@pytest.mark.parametrize("trial", PROMPTED, ids=lambda trial: trial.name)
def test_full_size_runs_have_an_image_for_each_adapter(trial: full_size.Trial, tmp_path: Path) -> None:
    given = full_size.images(trial, tmp_path)
    assert given.count("--ip-adapter-image") == trial.options.count("--ip-adapter") > 0


@pytest.mark.parametrize(
    "name", [*(trial.name for trial in full_size.TRIALS if trial not in PROMPTED), full_size.T5]
)
def test_full_size_exports(
    name: str, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    full_size.main(["--only", name, "--folder", str(tmp_path)])
    assert capfd.readouterr().out.splitlines()[-1].startswith(f"| {name} | 1 | 1.0 | 1.5 |")
    assert small
    assert (set(small) == {"text_encoder_3"}) == (name == full_size.T5)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_full_size_engines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Engines are built of an export, and of an existing bundle, which is kept."""
    full_size_engines.main(["--only", "sd15-fp16", "--folder", str(tmp_path)])
    row = "| sd15-fp16 unet | "
    assert capfd.readouterr().out.splitlines()[-1].startswith(row)
    assert not list(tmp_path.iterdir())
    bundle = write_fake_bundle(tmp_path / "bundle", "sd15")
    full_size_engines.main(["--only", "sd15-fp16", "--bundle", str(bundle)])
    assert capfd.readouterr().out.splitlines()[-1].startswith(row)
    assert bundle.exists()


def test_int8_beside_float32(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = [str(tiny("sd15", precision)) for precision in ("fp32", "int8")]
    int8.main([*bundles, "--examples", "1", "--rounds", "1"])
    assert "Relative error over 8 steps" in capsys.readouterr().out


def test_operators_of_a_step(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    operators.main([str(tiny("sd15")), "--size", "64", "--runs", "1", "--large", "64"])
    out = capsys.readouterr().out
    assert "| Conv |" in out
    assert "| product of matrices of 64 x 64 |" in out


def test_room_for_loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = [write_fake_bundle(tmp_path / f"rank-{rank}", "sd15", lora_rank=rank) for rank in (0, 4)]
    lora_room.main([*map(str, bundles), "--size", "64", "--rounds", "1", "--steps", "1"])
    titles = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles[2:] == ["| without room", "| room, unused", "| room, used"]


def test_vae_tiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image has several tiles; the fake decoder works on single pixels, so that tiling changes
    nothing."""
    vae_tiling.main([str(write_fake_bundle(tmp_path / "bundle", "sd15")), "--size", "128"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 0.000 |")
