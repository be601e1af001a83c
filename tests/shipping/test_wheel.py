"""The wheel and the sdist: complete, the same, and enough to run a bundle where there is no checkout."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import controlnext
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing
from support.wheels import FOLDERS, PROJECT, ROOT, CleanEnvironment, contents

pytestmark = pytest.mark.export
OPTIMUM = ("controlnext/cli/optimum_register/", "optimum/commands/register/")
"""Where the command of optimum is written, and where optimum looks for it."""
METADATA = f"controlnext-{controlnext.__version__}.dist-info"


def _expected() -> dict[str, bytes]:
    """Return the files of the four directories, by where the wheel has them."""
    found = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}": path.read_bytes()
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {name.replace(*OPTIMUM): content for name, content in found.items()}


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    """Also those that are no modules; nothing of tests, examples or benchmarks."""
    found = contents(wheel)
    expected = _expected()
    assert {name for name in found if not name.startswith(METADATA)} == set(expected)
    assert {name: found[name] for name in expected} == expected
    assert {
        f"{METADATA}/{name}" for name in ("METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE")
    } <= set(found)


def test_optimum_is_no_package_of_this_distribution(wheel: Path) -> None:
    """diffusers asks whose version optimum's is, and would be told this one."""
    assert contents(wheel)[f"{METADATA}/top_level.txt"].split() == [b"controlnext"]


def test_the_sdist_gives_the_same_wheel_as_the_checkout(built: Path) -> None:
    """With the same metadata, and under the same name."""
    one, other = (next((built / folder).iterdir()) for folder in ("wheel", "wheel-of-sdist"))
    assert one.name == other.name
    assert contents(one) == contents(other)


def test_the_sdist_has_what_a_reader_looks_for(built: Path) -> None:
    with tarfile.open(next((built / "sdist").iterdir())) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "constraints.txt",
        "pyproject.toml",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks", "docs", "."))]


def test_the_installed_package_is_the_one_that_runs(installed: CleanEnvironment, tmp_path: Path) -> None:
    """Without PyTorch, which nothing of the runtime asks for."""
    code = (
        "import controlnext.runtime, controlnext.engines, controlnext.runtime.serving.app, json;"
        "from importlib.util import find_spec;"
        "print(json.dumps([controlnext.__file__, controlnext.runtime.__file__, controlnext.__version__,"
        " find_spec('torch') is None]))"
    )
    top, runtime, version, alone = json.loads(installed.run("python", "-c", code, cwd=tmp_path))
    assert Path(top).is_relative_to(installed.root)
    assert Path(runtime).is_relative_to(installed.root)
    assert version == PROJECT["project"]["version"]
    assert alone


def test_the_environment_is_described(installed: CleanEnvironment, tmp_path: Path) -> None:
    told = json.loads(installed.run("controlnext", "env", "--json", cwd=tmp_path))
    assert told["controlnext"] == PROJECT["project"]["version"]
    assert told["problems"] == []
    versions = {package["name"]: package["version"] for package in told["packages"]}
    assert versions["onnxruntime"]
    assert versions["fastapi"]
    assert versions["torch"] is None


@pytest.mark.parametrize("program", PROJECT["project"]["scripts"])
def test_console_scripts_are_there(installed: CleanEnvironment, tmp_path: Path, program: str) -> None:
    assert "--" in installed.run(program, "--help", cwd=tmp_path)


def test_a_bundle_runs(installed: CleanEnvironment, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "fake", "sd15")
    drawing(0, 64, 64).save(tmp_path / "edges.png")
    options = ["--prompt", "a red circle", "--control-image", "edges.png", "--steps", "2", "--seed", "0"]
    installed.run("controlnext", "run", "fake", *options, "--output", "image.png", cwd=tmp_path)
    assert Image.open(tmp_path / "image.png").size == (64, 64)


def test_a_bundle_runs_by_the_script_of_make_smoke(installed: CleanEnvironment, tmp_path: Path) -> None:
    script, bundle = ROOT / "tests/shipping/smoke.py", ROOT / "tests/data/old_bundle/bundle"
    assert str(installed.root) in installed.run("python", script, bundle, cwd=tmp_path)
