"""``--config FILE``: options of a command from a TOML file, for ``export`` and ``serve``.

They become the defaults of the command's context, as the command line library has it: what is given on the
command line takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from controlnext.cli.option_names import ARGUMENTS, AT_FAULT, reword
from controlnext.cli.verbosity import Command, parameters_of
from controlnext.errors import EngineError, InputError
from controlnext.families.values import did_you_mean
from controlnext.regular import read_small

_NAME = "config"
_NUMBERS = "N"
"""The start of the metavar of a text that may be a number: ``N|MIN:OPT:MAX``."""


def _read(context: typer.Context, file: Path | None) -> None:
    if file is not None and not context.resilient_parsing:
        reader = _Reader(context, file)
        context.default_map = reader.defaults()
        context.meta[_NAME] = reader.origins


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_read,
        is_eager=True,
        expose_value=False,
        help="Path to a TOML file with options by their names; those of the command line take their place.",
        show_default=False,
    ),
]


def _options(config: Config = None) -> None:
    """Stand for a command that has this option alone."""


class ConfigCommand(Command):
    """A subcommand whose options may be in a file."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.params = [*self.params, *parameters_of(_options)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error that blames a value of the file names the file and the key."""
        try:
            return super().invoke(ctx)
        except EngineError:  # it is told with the command that builds one
            raise
        except InputError as error:
            origin = _origin(ctx, error)
            if not origin:
                raise
            told = str(error).removeprefix(error.argument or "")
            told = f" {told.lstrip()}" if AT_FAULT.match(told) else f": {error}"
            raise InputError(origin + told) from error


def _origin(context: typer.Context, error: InputError) -> str:
    """Return the file and the key of the value that an error blames, or names; empty where it has none."""
    for name, origin in context.meta.get(_NAME, {}).items():
        source = getattr(context.get_parameter_source(name), "name", "")
        own = ARGUMENTS.get(name, (name, name.removesuffix("s")))
        named = error.argument in own or (
            error.argument is None
            and any(f"{word} " in str(error) for word in (_option(name), f"`{own[0]}`"))
        )
        if named and source == "DEFAULT_MAP":
            return str(origin)
    return ""


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _Reader:
    """Reads the options of the command of a context from a file."""

    def __init__(self, context: typer.Context, file: Path) -> None:
        self._context, self._file = context, file
        self._known: Mapping[str, Any] = {
            _key(parameter): parameter for parameter in context.command.params if parameter.name != _NAME
        }
        self.origins: dict[str, str] = {}
        """File and key of each value, by the names of parameters."""

    def defaults(self) -> dict[str, Any]:
        """Return the values by the names of parameters.

        Raises :class:`InputError`, which names file and key, for a key that is no option, and for a value
        that is not one of the option.
        """
        found: dict[str, Any] = {}
        for written, value in self._content().items():
            key = written.replace("_", "-")
            if key not in self._known:
                raise InputError(f"{self._file}: {written} is not an option; {self._suggestion(key)}")
            parameter = self._known[key]
            if parameter.name in found:
                raise InputError(f"{self._file}: {written} is given twice, as {key} too; remove one")
            found[parameter.name] = self._checked(written, parameter, value)
            self.origins[parameter.name] = f"{self._file}: {written}"
        return found

    def _content(self) -> dict[str, Any]:
        import tomllib  # here, as most commands need it not

        try:
            return tomllib.loads(read_small(self._file).decode("utf-8-sig"))
        except OSError as error:
            hint = ""
            if any(parameter.name == "write_config" for parameter in self._context.command.params):
                hint = "; to write Ray Serve's configuration to a file, give --write-config"
            raise InputError(
                f"--config {self._file} cannot be read: {error.strerror or error}; give the path of a TOML"
                f" file{hint}"
            ) from error
        except ValueError as error:  # of TOML and of UTF-8
            raise InputError(
                f"--config {self._file} is not TOML: {error}; write one option a line, such as"
                ' precision = "fp16"'
            ) from error

    def _suggestion(self, key: str) -> str:
        off = {
            option.removeprefix("--"): one for one, p in self._known.items() for option in p.secondary_opts
        }
        if key in off:
            return f"write {off[key]} = false"
        if near := did_you_mean(key, self._known):
            return near.removeprefix("; ")
        return f"accepted: {', '.join(sorted(self._known))}"

    def _checked(self, key: str, parameter: Any, value: Any) -> Any:
        several = parameter.multiple or parameter.nargs != 1
        if isinstance(value, list) and not several:
            raise self._wrong(key, value, "one value, not a list", _toml(value[0]) if value else '"..."')
        checked = [self._one(key, parameter, one) for one in (value if isinstance(value, list) else [value])]
        given = checked if several else checked[0]
        self._process(key, parameter, given)
        return given

    def _process(self, key: str, parameter: Any, given: Any) -> None:
        """Raise :class:`InputError` for a value that the option does not take."""
        try:
            parameter.process_value(self._context, given)
        except typer.TyperException as error:
            reword(error)
            told = getattr(error, "message", "") or str(error)
            raise InputError(f"{self._file}: {key}: {told}") from error
        except InputError as error:
            raise InputError(f"{self._file}: {key}: {error}", argument=error.argument) from error

    def _one(self, key: str, parameter: Any, value: Any) -> Any:
        """Return a value as the option takes it; raise :class:`InputError` for one of another kind."""
        if getattr(parameter, "is_flag", False):
            if not isinstance(value, bool):
                raise self._wrong(key, value, "true or false", "true")
            return value
        if number := _number_of(parameter, self._context):
            if isinstance(value, bool) or not isinstance(value, (int, number)):
                kind, example = ("an integer", 2) if number is int else ("a number", 1.5)
                own = parameter.default if isinstance(parameter.default, number) else example
                raise self._wrong(key, value, kind, value if _is_number(value) else own)
            return value
        if isinstance(value, int) and not isinstance(value, bool) and _may_be_number(parameter):
            return str(value)
        if not isinstance(value, str):
            if isinstance(value, float | int):  # a text of a number is no value of most options either
                self._process(key, parameter, [str(value)] if parameter.multiple else str(value))
                raise self._wrong(key, value, "a text", f'"{value}"')
            raise self._wrong(key, value, "a text", '"..."')
        return value

    def _wrong(self, key: str, value: Any, accepted: str, example: object) -> InputError:
        return InputError(
            f"{self._file}: {key} is {_toml(value)}; it must be {accepted}: write {key} = {example}"
        )


def _number_of(parameter: Any, context: typer.Context) -> type[int] | type[float] | None:
    """Return the kind of number that an option makes of its value; None for other options."""
    try:
        made = parameter.process_value(context, ["1"] if parameter.multiple else "1")
    except (typer.TyperException, InputError):
        return None
    one = made[0] if isinstance(made, list | tuple) else made
    return int if isinstance(one, int) else float if isinstance(one, float) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.isdecimal()


def _may_be_number(parameter: Any) -> bool:
    return (parameter.metavar or "").startswith(_NUMBERS)


def _key(parameter: Any) -> str:
    """Return the key of an option: its long name; of an argument the name of the parameter."""
    long = next((option for option in parameter.opts if option.startswith("--")), parameter.name)
    return str(long).removeprefix("--").replace("_", "-")


_TOML: Mapping[type, Callable[[Any], str]] = {
    bool: lambda value: str(value).lower(),
    str: lambda value: f'"{value}"',
    dict: lambda _value: "a table",
    list: lambda value: f"[{', '.join(map(_toml, value))}]",
}
"""How kinds of values are shown."""


def _toml(value: Any) -> str:
    return _TOML.get(type(value), str)(value)
