"""``optimum-cli export controlnext``, with optimum itself and the files where the wheel puts them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from support.cli import Cli, Done, assert_refused

commands = pytest.importorskip("optimum.commands", reason="needs optimum")
ROOT = Path(__file__).parents[2]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
REGISTER = "optimum.commands.register"
LATER = ("torch", "transformers", "diffusers", "typer", "controlnext")
"""Packages that a start of optimum is not to load for this one."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the packages out as the wheel has them; the installed ones may be of an older pyproject.toml."""
    made = tmp_path_factory.mktemp("site")
    for package in ("controlnext", REGISTER):
        source = ROOT / SETUP["package-dir"].get(package, package)
        target = made.joinpath(*package.split("."))
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).symlink_to(path)
    for name in ("export", "engines", "runtime"):
        (made / "controlnext" / name).symlink_to(ROOT / name)
    return made


@pytest.fixture
def optimum(site: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs ``optimum-cli`` in this process, which finds commands in ``site`` alone."""
    from optimum.commands import optimum_cli

    places = [str(Path(optimum_cli.__file__).parent), str(site / "optimum" / "commands")]
    monkeypatch.setattr(commands, "__path__", places)
    for name in [name for name in sys.modules if name.startswith(REGISTER)]:
        monkeypatch.delitem(sys.modules, name)
    return lambda *arguments: cli(*arguments, entry=optimum_cli.main)


def fresh(site: Path, code: str, *arguments: str) -> Done:
    """Run ``optimum-cli`` in a process that finds this package in ``site`` alone, after ``code``."""
    packages = [one for one in sys.path if one.endswith("-packages")]
    whole = f"import sys; {code}; from optimum.commands.optimum_cli import main; main()"
    done = subprocess.run(
        # -S: without what an editable installation adds
        [sys.executable, "-S", "-c", whole, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *packages])},
        capture_output=True,
        text=True,
        cwd=site,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_the_package_is_shipped_without_an_init() -> None:
    """Other distributions have files there too."""
    assert REGISTER in SETUP["packages"]
    files = [path.name for path in (ROOT / SETUP["package-dir"][REGISTER]).glob("*.py")]
    assert files == ["register_controlnext.py"]


def test_optimum_lists_the_command_and_loads_nothing_for_it(site: Path) -> None:
    loaded = f"import atexit; atexit.register(lambda: print([n for n in {LATER} if n in sys.modules]))"
    done = fresh(site, loaded, "export", "--help")
    assert done.status == 0, done.err
    assert "Export a ControlNeXt model to a bundle" in done.out
    assert done.out.splitlines()[-1] == "[]"


def test_a_library_that_is_missing_is_named_in_a_line(site: Path) -> None:
    done = fresh(site, "sys.modules['typer'] = None", "export", "controlnext", "--help")
    assert_refused(done, "this needs typer, which is not installed", 'pip install "controlnext[export]"')


def test_a_missing_library_that_would_not_fit_is_not_offered(site: Path) -> None:
    code = (
        "from importlib import metadata; sys.modules['typer'] = None; metadata.version = lambda name: '0.1'"
    )
    done = fresh(site, code, "export", "controlnext", "--help")
    assert_refused(done, "this needs ", "transformers>=", "(0.1 is installed)")


def test_the_help_is_that_of_our_command(optimum: Cli) -> None:
    done = optimum("export", "controlnext", "--help")
    assert done.status == 0, done.err
    assert "Usage: optimum-cli export controlnext [OPTIONS]" in done.out
    for option in ("--unet-increments", "--precision", "--dry-run", "--config", "--quiet"):
        assert option in done.out
    assert "completion" not in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["Missing option '--model'"]),
        (("--model", "sdxxl", "--output", "new"), ["unknown model 'sdxxl'", "sdxl"]),
        (("-x",), ["No such option: -x"]),
    ],
)
def test_bad_input_is_refused_as_by_our_command(
    optimum: Cli, arguments: tuple[str, ...], words: list[str]
) -> None:
    assert_refused(optimum("export", "controlnext", *arguments), *words)


def test_options_reach_the_export(optimum: Cli, tmp_path: Path) -> None:
    """Which prints its plan here."""
    model = ROOT / "examples" / "shapes" / "model"
    sources = ["--base", model / "base", "--control", model / "controlnet.safetensors"]
    unet = ["--unet-weights", model / "unet.safetensors", "--unet-increments"]
    target = ["--model", "sdxl", "--output", tmp_path / "new", "--dry-run", "--json"]
    done = optimum("export", "controlnext", *sources, *unet, *target)
    assert done.status == 0, done.err
    assert str(model / "unet.safetensors") in done.out


def test_a_library_that_is_too_old_is_named_in_a_line(
    optimum: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As beside optimum-onnx 0.1, which takes no later one."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.1.0" if name == "transformers" else real(name))
    done = optimum("export", "controlnext", "--model", "sdxl", "--output", tmp_path / "new")
    assert_refused(done, "this needs transformers>=", "(3.1.0 is installed)")
