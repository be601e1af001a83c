"""``controlnext build`` and ``export --backend`` build engines once, and refuse bad input in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlnext.bundle.files import sha256
from controlnext.bundle.manifest import FileEntry, Manifest, write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.cli.app import make_application
from controlnext.cli.option_names import OptionNames
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import Gpu
from controlnext.engines.tensorrt.store import find_engine
from controlnext.errors import EngineError, WorkError
from support.cli import Cli, assert_refused

RTX = FLAVORS["tensorrt-rtx"]
ADA = Gpu("NVIDIA RTX 4090", "sm89")
BUILD = ("--backend", "tensorrt-rtx", "--graph", "vae_encoder", "--height", "64", "--width", "64")


@pytest.fixture
def bundle(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    shutil.copytree(tiny("sd15", "fp16"), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_build_tells_what_it_built_and_builds_it_once(cli: Cli, bundle: Path) -> None:
    done = cli("build", bundle, *BUILD, "--json")
    assert done.status == 0, done.err
    assert done.err == ""
    (engine,) = json.loads(done.out)["engines"]
    assert engine["graph"] == "vae_encoder"
    assert engine["file"] == "engines/tensorrt-rtx-portable/vae_encoder/model.engine"
    assert engine["bytes"] == (bundle / engine["file"]).stat().st_size
    assert engine["profile"] == {"sample": [[1, 3, 64, 64], [1, 3, 64, 64], [4, 3, 64, 64]]}
    assert engine["new"]
    before = (bundle / engine["file"]).stat().st_mtime_ns
    again = cli("build", bundle, *BUILD)
    assert again.status == 0, again.err
    assert again.out.count("\n") == 1
    assert "was built before" in again.out
    assert (bundle / engine["file"]).stat().st_mtime_ns == before
    (other,) = json.loads(cli("build", bundle, *BUILD, "--batch", "1", "--json").out)["engines"]
    assert other["new"]


def test_a_damaged_engine_is_built_again(cli: Cli, bundle: Path) -> None:
    (engine,) = json.loads(cli("build", bundle, *BUILD, "--json").out)["engines"]
    path = bundle / engine["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    manifest, wanted = read_manifest(bundle), RTX.requirements(ADA)
    with pytest.raises(EngineError, match=r"is damaged: model\.engine") as refusal:
        find_engine(bundle, manifest, "vae_encoder", wanted)
    message = OptionNames(make_application()).describe(refusal.value)
    command = message.rpartition("build one: controlnext ")[2].split()
    assert cli(*command, "--graph", "vae_encoder").status == 0
    assert find_engine(bundle, manifest, "vae_encoder", wanted).path == path


def test_two_builds_at_once(bundle: Path) -> None:
    """One process builds the engine, the other waits and uses it."""
    command = [sys.executable, "-m", "controlnext", "build", str(bundle), *BUILD, "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(json.loads(answer)["engines"][0]["new"] for answer in answers) == [False, True]
    find_engine(bundle, read_manifest(bundle), "vae_encoder", RTX.requirements(ADA))
    assert [path.name for path in bundle.glob("engines/*/*") if path.is_dir()] == ["vae_encoder"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("--backend",)),
        (("--backend", "openvino"), ("'openvino'", "accepted: tensorrt, tensorrt-rtx")),
        (("--backend", "onnx"), ("'onnx'", "accepted: tensorrt, tensorrt-rtx")),
        (
            ("--backend", "tensorrt", "--backend", "tensorrt-rtx"),
            ("cannot share a process", "build one, then the other"),
        ),
        ((*BUILD, "--graph", "transformer"), ("no graph transformer", "unet, vae_decoder, vae_encoder")),
        ((*BUILD, "--height", "500"), ("height is 500", "multiples of 8")),
        ((*BUILD, "--height", "512:256:1024"), ("512:256:1024", "MIN:OPT:MAX")),
        ((*BUILD, "--frames", "14"), ("is not supported by", "remove --frames")),
        ((*BUILD, "--optimization-level", "6"), ("--optimization-level", "less than or equal to 5")),
        ((*BUILD, "--compute-capability", "9.0"), ("9.0", "accepted: 7.5, 8.0, 8.6, 8.9, 12.0")),
        ((*BUILD, "--compute-capability", "Ada"), ("'Ada' is not a compute capability", "such as 8.6")),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(
    cli: Cli, bundle: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(cli("build", bundle, *options), *words)
    assert not (bundle / "engines").exists()


def test_a_refused_build_gives_the_librarys_own_reason(cli: Cli, bundle: Path) -> None:
    done = cli("build", bundle, "--backend", "tensorrt-rtx", "--graph", "unet", "--workspace", "1")
    assert_refused(done, "TensorRT-RTX refuses to build", "unet/model.onnx", "OutOfMemory", status=1)
    assert not list(bundle.glob("engines/*/unet"))


def test_a_graph_that_is_no_graph_gives_the_parsers_reason(cli: Cli, bundle: Path) -> None:
    """The checksum in the manifest is right, so the parser gets the file."""
    path, manifest = bundle / "unet" / "model.onnx", read_manifest(bundle)
    path.write_bytes(b"no graph")
    files = {**manifest.files, "unet/model.onnx": FileEntry(sha256(path), path.stat().st_size)}
    write_manifest(bundle, msgspec.structs.replace(manifest, files=files))
    done = cli("build", bundle, "--backend", "tensorrt-rtx", "--graph", "unet")
    assert_refused(done, "TensorRT-RTX refuses to build", status=1)


def test_a_damaged_graph_is_never_built(cli: Cli, bundle: Path) -> None:
    path = bundle / "vae_encoder" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert_refused(cli("build", bundle, *BUILD), "vae_encoder/model.onnx.data is damaged")


@pytest.mark.parametrize(
    ("module", "backend", "command"),
    [
        ("tensorrt_rtx", "tensorrt-rtx", 'pip install "controlnext[rtx]"'),
        ("tensorrt", "tensorrt", 'pip install "controlnext[tensorrt]"'),
    ],
)
def test_a_missing_library_names_the_pip_command(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch, module: str, backend: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(cli("build", bundle, "--backend", backend), "is not installed", command)


def test_missing_polygraphy_names_the_pip_command(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert_refused(
        cli("build", bundle, *BUILD), "Polygraphy is not installed", 'pip install "controlnext[rtx]"'
    )


@pytest.fixture
def quick_export(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[[str], Path]
) -> tuple[object, ...]:
    """Return the arguments of an export that copies the tiny bundle instead of tracing."""
    import controlnext.export

    def copy(_checkpoint: Any, precision: str, output: Path, **_options: Any) -> Manifest:
        shutil.copytree(tiny("sd15", precision), output)
        return read_manifest(output)

    # made before the export is replaced
    tiny("sd15", "fp16")
    monkeypatch.setattr(controlnext.export, "export_bundle", copy)
    checkpoint = tiny_checkpoint("sd15")
    base, control = checkpoint / "base", checkpoint / "control.safetensors"
    return "export", "--model", "sd15", "--no-verify", "--base", base, "--control", control


def test_export_builds_engines_too(cli: Cli, quick_export: tuple[object, ...], tmp_path: Path) -> None:
    backends = ("--backend", "onnx", "--backend", "tensorrt-rtx")
    sizes = ("--height", "64", "--width", "64", "--batch", "1")
    done = cli(*quick_export, "--output", tmp_path / "new", *backends, *sizes, "--json")
    assert done.status == 0, done.err
    engines = {engine["graph"]: engine for engine in json.loads(done.out)["engines"]}
    assert set(engines) == {"unet", "unet.shallow", "vae_decoder", "vae_encoder"}
    assert engines["unet"]["profile"]["sample"] == [[1, 4, 8, 8], [2, 4, 8, 8], [2, 4, 8, 8]]
    assert all((tmp_path / "new" / engine["file"]).is_file() for engine in engines.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--height", "512"), ("--height is for engines only", "--backend tensorrt or tensorrt-rtx")),
        (("--backend", "onnx", "--batch", "2"), ("--batch is for engines only",)),
        (("--backend", "coreml"), ("'coreml'", "accepted: onnx, tensorrt, tensorrt-rtx")),
        (("--backend", "tensorrt-rtx", "--width", "100"), ("width is 100", "multiples of 8")),
    ],
)
def test_export_refuses_before_it_exports(
    cli: Cli,
    quick_export: tuple[object, ...],
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert_refused(cli(*quick_export, "--output", tmp_path / "new", *options), *words)
    assert not (tmp_path / "new").exists()


def test_an_export_stays_where_its_engines_are_refused(
    cli: Cli, quick_export: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise WorkError("TensorRT-RTX refuses to build")

    monkeypatch.setattr("controlnext.cli.engines.build_engine", refuse)
    done = cli(*quick_export, "--output", tmp_path / "new", "--backend", "tensorrt-rtx")
    assert_refused(done, "TensorRT-RTX refuses to build", status=1)
    assert read_manifest(tmp_path / "new").family == "sd15"
