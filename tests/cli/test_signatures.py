"""Signatures of the commands: shared options are the same in each, and every option is passed on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from controlnext.cli import export, run, verify
from controlnext.cli.sources import Sources
from support.fake_bundle import write_fake_bundle

OF_THE_RUN_ITSELF = {"bundle", "backend", "device", "threads", "offload", "like", "as_json"}
TAKES_SOURCES = pytest.mark.parametrize("module", [export, verify], ids=["export", "verify"])


class _Stop(Exception):
    """Raised to end a command once its options are recorded."""


def _watched(seen: dict[str, Any]) -> Callable[..., None]:
    def stop(*arguments: Any, **options: Any) -> None:
        seen.update(options or arguments[-1])
        raise _Stop

    return stop


@TAKES_SOURCES
def test_a_command_has_the_options_of_the_sources_as_these_are(module: Any) -> None:
    command = getattr(module, module.__name__.rpartition(".")[2])
    hints, wanted = (get_type_hints(one, include_extras=True) for one in (command, Sources))
    parameters = inspect.signature(command).parameters
    for field in fields(Sources):
        assert hints[field.name] == wanted[field.name], field.name
        assert parameters[field.name].default == field.default, field.name


@TAKES_SOURCES
def test_every_option_reaches_the_sources(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {field.name: object() for field in fields(Sources)}
    others: dict[str, Any] = {"bundle": "x"} if module is verify else {"model": "sdxl", "output": "x"}
    seen: dict[str, Any] = {}
    monkeypatch.setattr(module, "Sources", _watched(seen))
    with pytest.raises(_Stop):
        getattr(module, module.__name__.rpartition(".")[2])(**others, **given)
    assert seen == given


def test_every_option_of_a_run_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(inspect.signature(run.run).parameters) - OF_THE_RUN_ITSELF
    given: dict[str, Any] = {name: object() for name in names}
    seen: dict[str, Any] = {}
    monkeypatch.setattr(run, "_check_options", _watched(seen))
    with pytest.raises(_Stop):
        run.run(bundle=write_fake_bundle(tmp_path / "bundle"), as_json=True, **given)
    assert seen == given
