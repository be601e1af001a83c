"""Paths that the file system refuses, and arguments that are no text, are one line in every command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing

LONG = "a" * 300
"""A name that no file system takes."""
COMMANDS = {
    "run": ("run", "{path}", "--prompt", "a", "--control-image", "{image}", "--output", "{free}.png"),
    "run-output": (
        "run",
        "{bundle}",
        "--prompt",
        "a",
        "--control-image",
        "{image}",
        "--output",
        "{path}.png",
    ),
    "inspect": ("inspect", "{path}"),
    "batch": ("batch", "{bundle}", "--jobs", "{jobs}", "--output", "{path}"),
    "serve": ("serve", "{bundle}", "--port", "0", "--loras", "{path}"),
    "triton": ("triton", "{bundle}", "--output", "{path}"),
    "verify": ("verify", "{bundle}", "--report", "{path}.html"),
    "base": ("export", "--model", "sdxl", "--base", "{path}", "--control", "{path}", "--output", "{free}"),
    "output": ("export", "--model", "sdxl", "--base", "{free}", "--control", "{free}", "--output", "{path}"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("paths") / "bundle")


def command(name: str, bundle: Path, tmp_path: Path, path: Path) -> list[str]:
    image = tmp_path / "control.png"
    drawing(1, 24, 16).save(image)
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a", "control_image": "control.png"}')
    places = {"jobs": jobs, "path": path, "bundle": bundle, "image": image, "free": tmp_path / "free"}
    return [word.format_map(places) for word in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_is_too_long(name: str, cli: Cli, bundle: Path, tmp_path: Path) -> None:
    assert_refused(cli(*command(name, bundle, tmp_path, tmp_path / LONG)), "too long")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_directory_that_may_not_be_read(
    name: str, cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the administrator, who may read all: the system's answer is taken for it."""
    closed = str(tmp_path / "closed")
    for function in ("stat", "lstat", "open", "mkdir", "scandir", "listdir"):
        _refuse_below(monkeypatch, function, closed)
    assert_refused(cli(*command(name, bundle, tmp_path, Path(closed) / "in")), "ermission")


def _refuse_below(monkeypatch: pytest.MonkeyPatch, function: str, closed: str) -> None:
    own = getattr(os, function)

    def refusing(path: Any = ".", *given: Any, **named: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return own(path, *given, **named)

    monkeypatch.setattr(os, function, refusing)


@pytest.mark.parametrize("function", ["stat", "open"])
def test_a_cache_that_may_not_be_read_is_not_used(
    function: str, cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = command("run-output", bundle, tmp_path, tmp_path / "out")
    assert cli(*given, "--steps", "1").status == 0
    for entry in bundle.glob("engines/*"):
        _refuse_below(monkeypatch, function, str(entry))
    again = command("run-output", bundle, tmp_path, tmp_path / "again")
    assert cli(*again, "--steps", "1").status == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_an_argument_that_is_no_text(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    for name in ("run", "inspect"):
        given = command(name, bundle, tmp_path, Path("b\udcff"))
        assert_refused(cli(*given), r"argument 'b\udcff' is not text in UTF-8")


def test_a_working_directory_that_is_gone(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = cli("inspect", "b")
    os.chdir(tmp_path)
    assert_refused(done, "the working directory is gone; change to another one")
