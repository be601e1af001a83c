"""The scheduler configuration of a base: the origin of each setting, and checks that the samplers support
it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.bundle.manifest import Setting
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family
from controlnext.families.graph_spec import CLASS
from controlnext.families.options import Option, read_options
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.families.values import did_you_mean
from controlnext.weights.base_keys import SCHEDULER as UNREAD
from controlnext.weights.config_check import check_network, check_unknown, check_values
from controlnext.weights.json_files import read_json
from controlnext.weights.model_index import check_index
from controlnext.weights.networks import public
from controlnext.weights.shipped import SCHEDULER
from controlnext.weights.weight_source import WeightSource


@dataclass(frozen=True)
class Scheduler:
    """A scheduler's ``config``, as in scheduler_config.json, and where each of its settings came from."""

    config: dict[str, Any]
    settings: dict[str, Setting]

    @classmethod
    def of(cls, family: Family, config: Mapping[str, Any], origin: Setting) -> Scheduler:
        """Return ``config`` with the settings that the family's pipeline always sets.

        Options that it does not name stay unnamed: each scheduler class has its own defaults for them, which
        diffusers keeps when it makes one class from another's configuration.
        """
        fixed = {key: value for key, value in family.scheduler_options.items() if key in config}
        settings = {key: origin for key in config if not key.startswith("_")}
        changed = {
            key: Setting("pipeline", family.pipeline_class) for key in fixed if config[key] != fixed[key]
        }
        return cls({**config, **fixed}, settings | changed)

    def marked(self, found: Mapping[str, tuple[Any, str]]) -> Scheduler:
        """Return a copy with the settings of :func:`~controlnext.weights.markers.marked_settings`."""
        values = {key: value for key, (value, _) in found.items()}
        origins = {key: Setting("marker", name) for key, (_, name) in found.items()}
        return Scheduler(self.config | values, self.settings | origins)

    def check_marked(self, family: Family, found: Mapping[str, tuple[Any, str]], what: str) -> None:
        """Raise :class:`CheckpointError` if the markers of trained tensors in the file ``what`` ask for other
        settings than these. Settings that a user gave are exempt."""
        known = SAMPLER_SPECS[family.default_sampler].options
        others = {
            key: by
            for key, (value, by) in found.items()
            if self.config.get(key, known[key].default) != value
            and self.settings.get(key, Setting("shipped")).origin != "option"
        }
        if others:
            asked = ",".join(f"{key}={_written(found[key][0])}" for key in others)
            ours = ",".join(f"{key}={_written(self.config.get(key, known[key].default))}" for key in others)
            raise CheckpointError(
                f"{what} asks for {asked} (by {', '.join(dict.fromkeys(others.values()))}), the base's"
                f" scheduler has {ours}; give `scheduler` {asked}, or `scheduler` {ours} to keep the base's",
                argument="scheduler",
            )

    def given(self, family: Family, values: Mapping[str, Any]) -> Scheduler:
        """Return a copy with the settings that a user gave.

        Raises :class:`InputError` for a key that no sampler of the family reads, and for a value that none of
        them accepts.
        """
        for key, value in values.items():
            options = _readers(family, key)
            if not options:
                known = {key for sampler in family.samplers for key in SAMPLER_SPECS[sampler].options}
                raise InputError(
                    f"scheduler has the unknown key {key!r}; {family.title} accepts"
                    f" {', '.join(sorted(known))}{did_you_mean(key, known)}",
                    argument="scheduler",
                )
            if not any(option.accepts(value) for option in options):
                accepted = dict.fromkeys(option.accepted for option in options)
                raise InputError(
                    f"scheduler has {key}={value!r}, which no sampler of {family.title} takes; accepted:"
                    f" {'; or '.join(accepted)}",
                    argument="scheduler",
                )
        origins = {key: Setting("option") for key in values if not key.startswith("_")}
        return Scheduler(self.config | dict(values), self.settings | origins)

    def checked(self, family: Family, what: str) -> Scheduler:
        """Return this scheduler after :meth:`check`."""
        self.check(family, what)
        return self

    def check(self, family: Family, what: str) -> None:
        """Raise for settings that the family's default sampler does not support.

        ``what``: the base's name, for the message. Raises :class:`CheckpointError`.
        """
        _check_class(family, self.config.get(CLASS), what)
        name = family.default_sampler
        known = SAMPLER_SPECS[name].options
        mine = f"{what}: its scheduler"
        rest = {key: value for key, value in self.config.items() if key not in known}
        check_values(mine, rest, UNREAD, partial(_remedy, family))
        try:
            options = read_options(name, known, self.config, _GIVE)
        except InputError as error:
            raise CheckpointError(f"{what}: {error}", argument="scheduler") from error
        blind = options.get("rescale_betas_zero_snr") and options["prediction_type"] == "epsilon"
        if blind and self.settings["rescale_betas_zero_snr"].origin in ("marker", "option"):
            raise CheckpointError(
                f"{what}: a schedule that ends without signal (rescale_betas_zero_snr) needs"
                " prediction_type=v_prediction, which is not set; export with `scheduler`"
                " prediction_type=v_prediction, or with `scheduler` rescale_betas_zero_snr=false",
                argument="scheduler",
            )


def _written(value: Any) -> str:
    """Return a value as text for a message."""
    return value if isinstance(value, str) else json.dumps(value)


def read_scheduler(family: Family, directory: Path, origin: Setting) -> Scheduler:
    """Read the scheduler of a diffusers directory. Unknown keys of its file give an error or a warning."""
    config = read_json(directory / SCHEDULER)
    known = {key for spec in SAMPLER_SPECS.values() for key in spec.options} | UNREAD.keys()
    check_unknown(f"{directory.name}: its scheduler", config, known, "diffusers' schedulers")
    return Scheduler.of(family, public(config), origin)


def checked_scheduler(
    family: Family, weight_source: WeightSource, settings: Mapping[str, Any], parts: Collection[str]
) -> Scheduler:
    """Read the scheduler of a directory and check all of the directory's configurations.

    ``parts``: the :func:`~controlnext.weights.model_index.part_names` of the whole family. Raises one
    :class:`CheckpointError` with all problems, as a base of another model usually has several.
    """
    scheduler = read_scheduler(family, weight_source.path, Setting("base", weight_source.name)).given(
        family, settings
    )
    checks = [
        partial(check_index, family, weight_source.path, parts),
        partial(scheduler.check, family, weight_source.name),
    ]
    for network in family.networks.values():
        file = weight_source.path / network.folder / "config.json"
        config = read_json(file) if file.is_file() else {}
        if config.get(CLASS, network.cls) in network.classes:
            checks.append(partial(check_network, network.of(config), config, weight_source.name))
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return scheduler


def _check_class(family: Family, cls: Any, what: str) -> None:
    if cls is not None and cls not in family.schedulers:
        raise CheckpointError(
            f"{what}: its scheduler is {cls}, which no sampler of {family.title} reads; accepted:"
            f" {', '.join(family.schedulers)}; give a base that was trained for one of them, or, if this one"
            f" was, name it as {CLASS} in its {SCHEDULER}{_class_meant(family, cls)}"
        )


def _class_meant(family: Family, cls: Any) -> str:
    """Return a hint at the class that a misspelled name means; empty if diffusers has the class."""
    exists = hasattr(importlib.import_module("diffusers"), str(cls))
    return "" if exists else did_you_mean(cls, family.schedulers)


_GIVE = "give `scheduler` {key}=VALUE, an accepted value, or another base"


def _remedy(family: Family, key: str) -> str:
    if _readers(family, key):
        return _GIVE.format(key=key)
    return f"give another base, or, if this one does not need it, remove it from its {SCHEDULER}"


def _readers(family: Family, key: str) -> list[Option]:
    """Return the option ``key`` of each of the family's samplers that reads it."""
    tables = [SAMPLER_SPECS[sampler].options for sampler in family.samplers]
    return [table[key] for table in tables if key in table]
