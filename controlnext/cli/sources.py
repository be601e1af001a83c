"""The options that say where weights come from, and the checkpoint that they name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from controlnext.cli import options
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family
from controlnext.runtime.samplers import make_sampler

if TYPE_CHECKING:
    from controlnext.weights import Checkpoint


@dataclass(frozen=True)
class Sources:
    """What a user gave of the options that export and verify share."""

    base: options.Base = None
    control: options.Control = None
    unet_weights: options.UnetWeights = None
    unet_increments: options.UnetIncrements = False
    vae: options.Vae = None
    lora: options.Lora = None
    no_t5: options.NoT5 = False
    scheduler: options.Scheduler = None
    random_weights: options.RandomWeights = None

    @property
    def given(self) -> list[str]:
        """The names of the options that were given."""
        return [
            "--" + field.name.replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]

    def load(self, family: Family, variant: str) -> Checkpoint:
        """The checkpoint; raises :class:`~controlnext.errors.ControlNeXtError` where there is none."""
        from controlnext.weights import load_checkpoint

        if self.no_t5 and not family.sequence_encoder:
            raise InputError(f"{family.name} has no T5 text encoder; leave --no-t5 out")
        checkpoint = load_checkpoint(
            family,
            variant=variant,
            base=self.base,
            control=self.control or (),
            unet_weights=self.unet_weights or (),
            unet_increments=self.unet_increments,
            vae=self.vae,
            lora=self.lora or (),
            leave_out=(family.sequence_encoder,) if self.no_t5 else (),
            scheduler=parse_settings(self.scheduler or ()),
            random_seed=self.random_weights,
        )
        _check_sampler(checkpoint)
        return checkpoint


NO_SOURCES = Sources()


def _check_sampler(checkpoint: Checkpoint) -> None:
    """Refuse settings of the scheduler that are right each by itself, but not together: make the default
    sampler of them."""
    family = checkpoint.family
    try:
        # a schedule that divides by zero is an error of its own
        with np.errstate(all="ignore"):
            make_sampler(family.default_sampler, checkpoint.scheduler, family.default_steps)
    except InputError as error:
        raise CheckpointError(
            f"the scheduler of this base, with what --scheduler gives: {error}", argument="scheduler"
        ) from error


_NEXT_SETTING = re.compile(r",(?=\s*\w+\s*=)")


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE[,KEY=VALUE...]`` by key; a value is JSON, or a word. Commas within a list part nothing."""
    settings: dict[str, Any] = {}
    for text in (one for many in given for one in _NEXT_SETTING.split(many)):
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise InputError(
                f"--scheduler {text!r} is no setting; give KEY=VALUE, such as prediction_type=v_prediction"
            )
        if key in settings:
            raise InputError(f"--scheduler gives {key} twice; give it once")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def takes_sources(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the fields of :class:`Sources` as options in place of its parameter ``sources``."""
    hints = get_type_hints(Sources, include_extras=True)
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        if name != "sources":
            parameters.append(parameter)
            continue
        parameters += [
            inspect.Parameter(f.name, parameter.kind, default=f.default, annotation=hints[f.name])
            for f in fields(Sources)
        ]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        sources = Sources(**{field.name: given.pop(field.name) for field in fields(Sources)})
        command(**given, sources=sources)

    # what typer reads: the signature for names and defaults, the annotations for types and help
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
