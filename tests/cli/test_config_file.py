"""``--config FILE``: options of ``export`` and ``serve`` from a TOML file, and what is wrong in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from controlnext.cli.app import call, make_application
from controlnext.cli.config_file import ConfigCommand
from controlnext.cli.options import Threads
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle

Write = Callable[[str], Path]
COMMANDS = typer.main.get_command(make_application()).commands  # type: ignore[attr-defined]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "given.toml"
        path.write_text(text)
        return path

    return write


def _seen(*arguments: object) -> dict[str, Any]:
    """The options that reach a command."""
    application, seen = typer.Typer(), {}

    @application.command(cls=ConfigCommand)
    def work(
        model: str = typer.Option(),
        rank: int = 0,
        share: float = 0.5,
        lora: list[str] | None = None,
        height: str | None = typer.Option(None, metavar="N|MIN:OPT:MAX"),
        verify: bool | None = typer.Option(None, "--verify/--no-verify"),
        threads: Threads = None,
        output: Path | None = None,
    ) -> None:
        seen.update(
            model=model, rank=rank, share=share, lora=lora, height=height, verify=verify, output=output
        )
        seen.update(threads=threads)

    assert call(application, [str(one) for one in arguments], "work") == 0
    return seen


def test_every_kind_of_option_is_read(write: Write) -> None:
    file = write(
        'model = "sdxl"\nrank = 4\nshare = 1\nlora = ["a", "b:0.5"]\nheight = 512\nverify = false\n'
        'output = "build/x"  # as on the command line\n'
    )
    assert _seen("--config", file) == {
        "model": "sdxl",
        "rank": 4,
        "share": 1.0,
        "lora": ["a", "b:0.5"],
        "height": "512",
        "verify": False,
        "threads": None,
        "output": Path("build/x"),
    }


def test_the_command_line_takes_the_place_of_the_file(write: Write) -> None:
    """Wherever it stands, also for options that may be repeated."""
    file = write('model = "sdxl"\nrank = 4\nlora = "a"\nverify = false\nthreads = 2\n')
    seen = _seen("--rank=1", "--config", file, "--model=sd15", "--lora=c", "--verify")
    assert (seen["model"], seen["rank"], seen["lora"], seen["verify"]) == ("sd15", 1, ["c"], True)
    assert seen["threads"] == 2


@pytest.mark.parametrize("name", ["export", "serve"])
def test_commands_with_many_options_have_it(name: str) -> None:
    assert "config" in {parameter.name for parameter in COMMANDS[name].params}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('precison = "fp16"', ["given.toml: precison is not an option; did you mean precision?"]),
        ("zzz = 1", ["given.toml: zzz is not an option; accepted: backend, base, batch"]),
        ("no-verify = true", ["given.toml: no-verify is not an option; write verify = false"]),
        ('config = "other.toml"', ["given.toml: config is not an option"]),
        ('lora-rank = "4"', ['given.toml: lora-rank is "4"; it must be an integer: write lora-rank = 4']),
        ("lora_rank = 1.5", ["given.toml: lora_rank is 1.5; it must be an integer"]),
        ("lora-rank = true", ["given.toml: lora-rank is true; it must be an integer"]),
        ("lora-rank = -1", ["given.toml: lora-rank: -1"]),
        ('random-weights = "x"', ['random-weights is "x"; it must be an integer: write random-weights = 2']),
        ("height = 512", ["given.toml: height: --height is for engines only"]),
        ('model = ["sdxl"]', ['model is ["sdxl"]; it must be one value, not a list: write model = "sdxl"']),
        ('model = "sdxxl"', ["given.toml: model: unknown model 'sdxxl'; accepted: sd15, sdxl"]),
        ("random-weights = -1", ["given.toml: random-weights: -1 is negative"]),
        ('force = "yes"', ['given.toml: force is "yes"; it must be true or false: write force = true']),
        ("base = 5", ['given.toml: base is 5; it must be a text: write base = "5"']),
        ("output = 5", ['given.toml: output is 5; it must be a text: write output = "5"']),
        ("base = true", ["given.toml: base is true; it must be a text"]),
        ('base = ["a", "b"]', ['given.toml: base is ["a", "b"]; it must be one value']),
        ("lora = [1]", ['given.toml: lora is 1; it must be a text: write lora = "1"']),
        ("[base]\npath = 1", ["given.toml: base is a table; it must be a text"]),
        ('precision = "int4"', ["given.toml: precision: ", "int4", "fp16"]),
        ("precision = 16", ["given.toml: precision: ", "'16'", "fp16"]),
        ('compute = "int8"', ["given.toml: compute: 'int8' is not one of fp32, fp16"]),
        ('output = "s3://b/x"', ["given.toml: output: ", "must be a path on this machine"]),
        ("lora-rank = 1\nlora_rank = 2", ["given.toml: lora_rank is given twice"]),
        ("precision = fp16", ["given.toml is not TOML: ", 'such as precision = "fp16"']),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(
    cli: Cli, tmp_path: Path, write: Write, text: str, words: list[str]
) -> None:
    model = () if text.startswith("model") else ("--model", "sdxl")
    done = cli("export", *model, "--output", tmp_path / "new", "--config", write(text))
    assert_refused(done, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 99999", "given.toml: port is 99999; it must be"),
        ('device = "gpu"', "given.toml: device: unknown device 'gpu'; accepted: auto"),
        ('device = "cuda"', "given.toml: device: device cuda was requested"),
        ("queue = -1", "given.toml: queue is -1; it must be"),
        ('port = "abc"', 'given.toml: port is "abc"; it must be an integer: write port = 8000'),
    ],
)
def test_what_the_command_finds_wrong_later_names_file_and_key(
    cli: Cli, tmp_path: Path, write: Write, text: str, words: str
) -> None:
    """If the value is the file's: one of the command line is told as ever."""
    bundle = write_fake_bundle(tmp_path / "toy")
    assert_refused(cli("serve", bundle, "--config", write(text)), words)
    done = cli("serve", bundle, "--config", write('device = "cpu"'), "--device=gpu")
    assert done.err.startswith("controlnext: error: unknown device 'gpu'")


def test_a_file_that_is_not_there_is_told(cli: Cli, tmp_path: Path) -> None:
    """With the option's other name to those who mean what ``--config`` of ``serve`` was before."""
    missing = tmp_path / "missing.toml"
    assert_refused(cli("export", "--config", missing), f"--config {missing} cannot be read")
    assert_refused(cli("serve", "bundle", "--ray", "--config", missing), "give --write-config")


def test_the_arguments_of_serve_may_be_in_the_file(cli: Cli, tmp_path: Path, write: Write) -> None:
    """The bundles, and a cluster."""
    given = write(f'bundles = ["{tmp_path}/nothing"]\nport = 0\nquiet = true\n')
    assert_refused(cli("serve", "--config", given), "given.toml: bundles: ", "nothing is not a bundle")
    assert_refused(cli("serve", "--config", write("replicas = 2"), "b"), "replicas is for a Ray cluster")
