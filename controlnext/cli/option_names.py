"""Names of options for the names of arguments, in errors and warnings.

Messages of the libraries name Python arguments in backticks; the command line shows the options instead.
"""

from __future__ import annotations

import copy
import logging
import re
import shlex
from collections.abc import Container, Mapping, Sequence, Set
from functools import cached_property
from types import MappingProxyType
from typing import Any

import typer

from controlnext.errors import ControlNeXtError, EngineError, visible
from controlnext.families.values import nearest

ARGUMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": ("batches",),
        "compute_capability": ("targets",),
        "control_image": ("control_image", "control_images"),
        "decode_chunk": ("decode_chunk_size",),
        "frames": ("num_frames",),
        "guidance": ("guidance_scale", "max_guidance_scale"),
        "measure": ("measures",),
        "min_guidance": ("min_guidance_scale",),
        "model": ("family",),
        "no_t5": ("leave_out",),
        "num_images": ("num_images_per_prompt",),
        "preprocessor_model": ("weights", "detector", "estimator"),
        "queue": ("max_waiting",),
        "ray": ("address",),
        "random_weights": ("random_seed",),
        "scale": ("control_scale",),
        "size": ("sizes",),
        "steps": ("num_inference_steps",),
        "write_config": ("config",),
    }
)
"""The libraries' arguments by option, where the names differ."""


_NEAR = 0.75
"""How like what was written a suggestion has to be, from 0 to 1."""
_CHECK = "Value error, "
"""The words of the library before the message of a check of its own."""


def reword(error: typer.TyperException, arguments: Sequence[str] = ()) -> None:
    """Have the message of an error of the command line's library say what was given, without the library's
    names for errors and without suggestions that are not near. ``arguments``: the command line."""
    if hasattr(error, "possibilities") and (context := getattr(error, "ctx", None)):
        _suggest(error, {option for one in context.command.params for option in one.opts}, arguments)
    if isinstance(error, typer.BadParameter) and (cause := error.__cause__) and hasattr(cause, "errors"):
        found = cause.errors()[0]
        told = found["msg"].removeprefix(_CHECK).partition(", unable")[0]
        asked = told.replace("Input should", "it must", 1)
        error.message = told if asked == told else f"{found['input']}; {asked}"


def _suggest(error: Any, options: Set[str], arguments: Sequence[str]) -> None:
    """Have the error for an unknown option name those that may be meant."""
    given = error.option_name
    # of -control-image the library tells -c alone
    for whole in arguments:
        if whole.startswith(given) and f"-{whole}" in options:
            error.message, given = f"No such option: {whole}", f"-{whole}"
    error.possibilities = [given] if given in options else nearest(given, options, _NEAR)


def where_to_look(error: typer.TyperException) -> str:
    """Return where the options are listed, for an error of what is missing or not known; empty for others."""
    context = getattr(error, "ctx", None)
    missing = isinstance(error, typer.BadParameter) and not error.message
    if context is None or not (missing or type(error).__name__ == "UsageError"):
        return ""
    return f"; {context.command_path} --help lists what it takes"


def argument_of(option: str, accepted: Container[str]) -> str | None:
    """Return the argument among the ``accepted`` ones that ``option`` gives, or None if there is none."""
    return next((name for name in ARGUMENTS.get(option, (option,)) if name in accepted), None)


MIB = 1 << 20
"""Bytes in a MiB: ``--workspace`` is in MiB, the libraries' argument in bytes."""

AS_WRITTEN: Mapping[str, bool] = MappingProxyType({"as_written": True})
"""The ``extra`` of a log record whose names in backticks are no arguments of a command."""

_NAMED = re.compile(r"`(\w+)`")
_NO_PLACE = re.compile(r"\S+: no such file or directory")
AT_FAULT = re.compile(" (is|has|was|begins) ")
"""The words after the argument at fault, where a message begins with it."""


class OptionNames:
    """The options of all subcommands of ``application``, by the names of the libraries' arguments."""

    def __init__(self, application: typer.Typer) -> None:
        self._application = application

    @cached_property
    def _options(self) -> dict[str, str]:
        group = typer.main.get_command(self._application)
        assert isinstance(group, typer.core.TyperGroup)
        parameters = [parameter for command in group.commands.values() for parameter in command.params]
        options = {p.name: p.opts[0] for p in parameters if p.name and p.param_type_name == "option"}
        differing = {argument: options[name] for name, several in ARGUMENTS.items() for argument in several}
        return options | differing

    def translate(self, text: str) -> str:
        """Return ``text`` with every argument in backticks that has an option replaced by that option."""
        return _NAMED.sub(lambda found: self._options.get(found[1], found[0]), text)

    def describe(self, error: ControlNeXtError) -> str:
        """Return the message of ``error``; for an :class:`EngineError` with the command that builds the
        engine."""
        if isinstance(error, EngineError):
            return f"{self.translate(error.problem)}; build one: {self._build_command(error)}"
        message, argument = str(error), error.argument
        if argument in self._options and _NO_PLACE.match(message):
            message = f"{self._options[argument]} {message}"
        # "num_inference_steps is 0": the argument at fault without backticks
        if argument in self._options and AT_FAULT.match(message.removeprefix(argument)):
            message = self._options[argument] + message.removeprefix(argument)
        return self.translate(message)

    def _build_command(self, error: EngineError) -> str:
        words = ["controlnext", "build", str(error.bundle)]
        build = dict(error.build)
        if isinstance(workspace := build.get("workspace"), int):
            build["workspace"] = workspace // MIB
        for name, value in build.items():
            for one in value if isinstance(value, list) else [value]:
                words += [self._options[name], *([] if one is True else [str(one)])]
        return shlex.join(words)


class OptionFormatter(logging.Formatter):
    """Formatter of the libraries' log records that shows options in place of arguments, and no secrets.

    Besides logging's own attributes a pattern may have ``%(mark)s``: the level of warnings and errors.
    """

    def __init__(self, names: OptionNames, pattern: str) -> None:
        super().__init__(pattern)
        self._names = names

    def set_pattern(self, pattern: str) -> None:
        """Format records by another pattern from now on."""
        super().__init__(pattern)

    def format(self, record: logging.LogRecord) -> str:
        """Format ``record``; an error among its arguments is shown as the error of a command would be.

        A record with ``extra=AS_WRITTEN`` keeps its names.
        """
        record = copy.copy(record)
        record.mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        if AS_WRITTEN.items() <= vars(record).items():
            return visible(super().format(record))
        if isinstance(given := record.args, tuple):
            record.args = tuple(
                self._names.describe(one) if isinstance(one, ControlNeXtError) else one for one in given
            )
        return visible(self._names.translate(super().format(record)))
