"""``--ray`` with an address, without one, and with what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

from controlnext.cli import ray_options
from controlnext.cli.ray_options import RayCommand
from controlnext.errors import InputError
from support.cli import Cli, assert_refused


def parse(*arguments: str) -> tuple[list[str], str | None]:
    """Return the bundles and the address that a command with ``--ray`` gets."""
    found: list[tuple[list[str], str | None]] = []

    def command(bundles: Annotated[list[str], typer.Argument()], ray: ray_options.Ray = None) -> None:
        found.append((bundles, ray))

    application = typer.Typer()
    application.command(cls=RayCommand)(command)
    typer.main.get_command(application).main(list(arguments), standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001", "10.0.0.5:6379", "[::1]:6379"])
def test_an_address_is_taken(address: str) -> None:
    assert parse("bundle", "--ray", address) == (["bundle"], address)
    assert parse("--ray", address, "bundle") == (["bundle"], address)


def test_without_an_address_it_is_this_machine(tmp_path: Path) -> None:
    assert parse("bundle") == (["bundle"], None)
    assert parse("bundle", "--ray") == (["bundle"], "local")
    assert parse("--ray", str(tmp_path)) == ([str(tmp_path)], "local")
    assert parse("--ray", "s3://models/a", "b") == (["s3://models/a", "b"], "local")
    assert parse("--ray", "--", "b") == (["b"], "local")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b", "--ray", "foo"], "ray is 'foo', which is no address .host:port, .* and no bundle"),
        (["b", "--ray", ""], "ray is ''; give host:port, ray://host:port, auto or local"),
        (["b", "--ray= "], "ray is ' '; give host:port"),
    ],
)
def test_what_is_no_address_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(*arguments)
    assert caught.value.argument == "ray"


def test_the_option_is_named(cli: Cli) -> None:
    for command in (["serve", "b"], ["batch", "b", "--jobs", "j", "--output", "o"]):
        assert_refused(cli(*command, "--ray", "foo"), "--ray is 'foo'", "auto or local")
    assert_refused(cli("serve", "b", "--ray", "", "--write-config", "c"), "--ray is ''; give host:port")
