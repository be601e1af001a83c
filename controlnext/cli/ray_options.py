"""Options of the commands that run on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from controlnext.bundle.remote import is_remote
from controlnext.cli.verbosity import Command
from controlnext.errors import InputError
from controlnext.runtime.ray_cluster import LOCAL

PANEL = "Ray"
_FLAG = "--ray"
ADDRESSES = f"host:port, ray://host:port, auto or {LOCAL}"
_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")


def _check_address(given: str | None) -> str | None:
    if given is not None and not given.strip():
        raise InputError(f"ray is {given!r}; give {ADDRESSES}", argument="ray")
    return given


Ray = Annotated[
    str | None,
    typer.Option(
        _FLAG,
        metavar="[ADDRESS]",
        callback=_check_address,
        help=f"Run on the Ray cluster at ADDRESS: {ADDRESSES}, which is one that is started here, as without"
        " ADDRESS.",
        show_default="in this process",
        rich_help_panel=PANEL,
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Number of replicas, each a pipeline of its own; with MIN:MAX as many as the load needs.",
        show_default="1",
        rich_help_panel=PANEL,
    ),
]

WriteConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write Ray Serve's configuration to FILE, for `serve deploy` and KubeRay, instead of serving.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]


def check_ray(ray: str | None, **needing: object) -> None:
    """Raise :class:`InputError` for an option of those ``needing`` a cluster that was given without one."""
    for name, given in needing.items():
        if given and ray is None:
            raise InputError(f"{name} is for a Ray cluster; give `ray` too", argument=name)


class RayCommand(Command):
    """A command whose option ``--ray`` may stand without its value: then a cluster is started here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare ``--ray`` the value that it stands for, then parse as ever."""
        given: list[str] = []
        for number, argument in enumerate(args):
            given.append(argument)
            if argument == "--":
                given += args[number + 1 :]
                break
            if argument == _FLAG and _stands_alone(args[number + 1 : number + 2]):
                given.append(LOCAL)
        return super().parse_args(ctx, given)


def _stands_alone(following: Sequence[str]) -> bool:
    """Return whether what follows ``--ray`` is no address; raise :class:`InputError` if it is no bundle
    either."""
    if not following or following[0].startswith("-"):
        return True
    (word,) = following
    if not word or _ADDRESS.fullmatch(word):
        return False
    if not (is_remote(word) or Path(word).exists()):
        raise InputError(
            f"ray is {word!r}, which is no address ({ADDRESSES}) and no bundle that is there", argument="ray"
        )
    return True
