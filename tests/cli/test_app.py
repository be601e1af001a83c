"""The command line on a tiny bundle prints its results, exits with the right status and reports bad input in
a line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import controlnext
from controlnext.bundle.files import MANIFEST
from controlnext.bundle.manifest import ParityRow
from controlnext.cli import export_main
from controlnext.types import Precision
from support.cli import Cli, Done, assert_refused


@pytest.fixture
def outline(tmp_path: Path) -> Path:
    """Write a control image of 64 x 64 pixels."""
    path = tmp_path / "outline.png"
    Image.new("RGB", (64, 64), "white").save(path)
    return path


def _sources(checkpoint: Path) -> list[str]:
    return ["--base", f"{checkpoint}/base", "--control", f"{checkpoint}/control.safetensors"]


def test_help_names_every_subcommand_and_exits_0(cli: Cli) -> None:
    for arguments in ((), ("--help",)):
        done = cli(*arguments)
        assert done.status == 0
        assert all(name in done.out for name in ("export", "run", "verify", "bench", "inspect"))


def test_version(cli: Cli) -> None:
    assert cli("--version") == Done(0, f"{controlnext.__version__}\n", "")


def test_the_accepted_precisions_are_listed(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", "--model", "sdxl", "--precision", "int4", "--output", tmp_path / "new")
    assert_refused(done, "'--precision': 'int4' is not one of", *Precision)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "sdxxl"], ["unknown model 'sdxxl'", "sdxl"]),
        (["--model", "sdxl", "--variant", "mid"], ["no variant 'mid'", "accepted: sdxl"]),
        (["--model", "sdxl"], ["no control weights", "--control"]),
        (["--model", "sdxl", "--base", "/none", "--control", "/none"], ["/none", "no such file"]),
        (["--model", "sdxl", "--random-weights", "0", "--vae", "folder"], ["--vae", "--random-weights"]),
        (["--model", "sdxl", "--random-weights", "-1"], ["--random-weights", "-1 is negative"]),
        (["--model", "sdxl", "--frames", "3"], ["--frames"]),
        ([], ["--model"]),
    ],
)
def test_export_refuses(cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = cli("export", *arguments, "--output", tmp_path / "new")
    assert_refused(done, *words)
    assert not (tmp_path / "new").exists()


def test_export_refuses_a_file_that_is_no_checkpoint(
    cli: Cli, tmp_path: Path, tiny_checkpoint_dir: Path
) -> None:
    garbage = tmp_path / "control.safetensors"
    garbage.write_bytes(b"this is no safetensors file")
    base = tiny_checkpoint_dir / "base"
    done = cli(
        "export", "--model", "sdxl", "--base", base, "--control", garbage, "--output", tmp_path / "new"
    )
    assert_refused(done, "control.safetensors")
    assert not (tmp_path / "new").exists()


def test_export_keeps_what_is_there(cli: Cli, tmp_path: Path, tiny_checkpoint_dir: Path) -> None:
    """A bundle is replaced only with --force, other files never."""
    sources = _sources(tiny_checkpoint_dir)
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    for folder, name in ((bundle, MANIFEST), (other, "thesis.txt")):
        folder.mkdir()
        (folder / name).write_text("precious")
    assert_refused(cli("export", "--model", "sdxl", *sources, "--output", bundle), "--force")
    assert_refused(
        cli("export", "--model", "sdxl", *sources, "--output", other, "--force"),
        "files that are not a bundle",
    )
    assert (bundle / MANIFEST).read_text() == (other / "thesis.txt").read_text() == "precious"


def test_controlnext_export_is_the_subcommand(cli: Cli, tmp_path: Path) -> None:
    done = cli("--model", "sdxxl", "--output", tmp_path / "new", entry=export_main)
    assert_refused(done, "unknown model 'sdxxl'")


def test_python_m_controlnext(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "controlnext", "inspect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(Done(done.returncode, done.stdout, done.stderr), "is not a bundle")


def test_inspect_shows_the_bundle(cli: Cli, tiny_bundle: Path) -> None:
    done = cli("inspect", tiny_bundle)
    assert done.status == 0
    assert all(
        word in done.out for word in ("sdxl", "fp32", "noise_pred", "unet/model.onnx", "control.safetensors")
    )


def test_inspect_as_json_is_the_manifest(cli: Cli, tiny_bundle: Path) -> None:
    done = cli("inspect", tiny_bundle, "--json")
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == {"bundle": str(tiny_bundle), **manifest}


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_file_is_named(cli: Cli, tmp_path: Path, tiny_bundle: Path, command: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with (bundle / "unet" / "model.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert_refused(cli(command, bundle), "model.onnx.data", "sha256")


def test_a_newer_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"schema": 99}')
    for command in ("inspect", "verify"):
        assert_refused(cli(command, tmp_path), "schema 99", "update controlnext")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], ["steps is 0", "must be a positive integer"]),
        (["--height", "100"], ["128 x 100", "multiples of 8"]),
        (["--report", "page.pdf"], ["page.pdf", ".html"]),
        (["--prompt", "a house"], ["no text encoders", "--prompt"]),
        (["--base", "folder"], ["--control"]),
        (["--control-image", "missing.png"], ["missing.png"]),
    ],
)
def test_verify_refuses(cli: Cli, tiny_bundle: Path, options: list[str], words: list[str]) -> None:
    assert_refused(cli("verify", tiny_bundle, *options), *words)


def test_verify_compares_and_reports(
    cli: Cli, tmp_path: Path, tiny_bundle_fp16: Path, tiny_checkpoint_dir: Path, outline: Path
) -> None:
    """With the original weights there is a row per output and for what was run; the report has the images."""
    page = tmp_path / "report.html"
    run = ["--steps", 2, "--height", 64, "--width", 96, "--control-image", outline]
    done = cli("verify", tiny_bundle_fp16, *_sources(tiny_checkpoint_dir), *run, "--report", page, "--json")
    assert (done.status, done.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.out)["parity"]}
    outputs = ["unet: noise_pred", "vae_decoder: sample", "vae_encoder: latent_parameters"]
    few = [
        f"latents, 2 steps 96x64, {what}" for what in ("from an image at strength 0.5", "cache interval 2")
    ]
    assert list(rows) == [*outputs, "latents, 2 steps 96x64", *few, "image, 2 steps 96x64"]
    assert 1e-5 < rows["unet: noise_pred"]["value"] <= rows["unet: noise_pred"]["limit"]
    content = page.read_text()
    assert content.count('src="data:image/png;base64,') == 4
    assert "http" not in content
    assert all(name in content for name in rows)


def test_verify_takes_the_bundles_own_weights(cli: Cli, tiny_bundle: Path) -> None:
    done = cli("verify", tiny_bundle, "--steps", 1, "--height", 64, "--width", 64)
    assert done.status == 0, done.err
    assert "unet: noise_pred" in done.out
    assert "MISSED" not in done.out


def test_verify_fails_when_parity_is_missed(
    cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is printed, the status is 1, and the error names the largest deviation."""
    from controlnext.evaluation import parity

    strict = parity.Limits(graph=1e-12, latents=1, image=0)
    monkeypatch.setitem(parity.LIMITS, "fp32", strict)
    done = cli("verify", tiny_bundle, "--steps", 1, "--height", 64, "--width", 64)
    assert done.status == 1
    assert "MISSED" in done.out
    assert done.err.startswith("controlnext: error: parity missed in 3 of 7 rows: unet: noise_pred")


def test_export_that_misses_parity_keeps_the_old_bundle(
    cli: Cli, tmp_path: Path, tiny_bundle: Path, tiny_checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ParityRow("unet: noise_pred", "relative L2", 0.5, 1e-4)
    monkeypatch.setattr("controlnext.evaluation.parity.measure", lambda *_: [row])
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(tiny_bundle / MANIFEST, bundle)
    before = (bundle / MANIFEST).read_bytes()
    sources = _sources(tiny_checkpoint_dir)
    done = cli("export", "--model", "sdxl", "--precision", "fp32", *sources, "--output", bundle, "--force")
    assert done.status == 1
    assert "MISSED" in done.out
    assert "parity missed in 1 of 1 rows: unet: noise_pred" in done.err
    assert (bundle / MANIFEST).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("command", ["export", "verify"])
def test_without_torch_the_extra_is_named(tmp_path: Path, tiny_bundle: Path, command: str) -> None:
    arguments = {
        "export": ["export", "--model", "sdxl", "--random-weights", "0", "--output", str(tmp_path / "new")],
        "verify": ["verify", str(tiny_bundle)],
    }[command]
    done = _without_torch(arguments)
    assert_refused(done, "torch", 'pip install "controlnext[export]"')


def test_inspect_needs_no_torch(tiny_bundle: Path) -> None:
    assert _without_torch(["inspect", str(tiny_bundle)]).status == 0


def _without_torch(arguments: list[str]) -> Done:
    """Run the command in an interpreter where torch and its dependents cannot be imported."""
    block = "sys.modules.update(dict.fromkeys(('torch', 'diffusers', 'transformers', 'onnx', 'onnx_ir')))"
    code = f"import sys; {block}; sys.argv[1:] = {arguments}; from controlnext.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)
