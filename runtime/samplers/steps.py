"""The steps of a run: their number, or those that a call gives, as in diffusers' `retrieve_timesteps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.families.values import is_integer, is_number

Given = NDArray[np.float64]
GIVEN_STEPS = ("timesteps", "sigmas")
"""Arguments that list the steps, in place of their number."""
MOST_STEPS, LARGEST = 10_000, 10**9
"""More values, and a larger value, than any schedule has."""
_LONGEST = 80


@dataclass(frozen=True)
class Steps:
    """The steps that a call asks for; one of the first three is set.

    count: the number of steps. timesteps: training timesteps to visit, integers from 0, highest first,
    (steps,) float64. sigmas: noise levels, highest first, (steps,) float64, or with the level after the last
    step (steps + 1,). begin: index of the first step of a run that starts from an image.
    """

    count: Any = None
    timesteps: Given | None = None
    sigmas: Given | None = None
    begin: int = 0

    @property
    def argument(self) -> str:
        """The name of the argument that is set."""
        if self.timesteps is not None:
            return "timesteps"
        return "num_inference_steps" if self.sigmas is None else "sigmas"


def read_steps(num_inference_steps: Any, timesteps: Any, sigmas: Any, begin: int = 0) -> Steps:
    """Return the steps of a call's arguments, each of which may be None; of `num_inference_steps` only the
    largest is checked, before anything of that size is made.

    Raises:
        InputError: more than one is given, more steps than any schedule has, or a list that is not one of
            falling numbers.
    """
    asked = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        named = " and ".join(f"`{name}`" for name in given)
        raise InputError(f"{named} were given; give one of them", argument=given[-1])
    if isinstance(num_inference_steps, (int, np.integer)) and num_inference_steps > MOST_STEPS:
        raise InputError(
            f"num_inference_steps is {num_inference_steps}; it must be from 1 to {MOST_STEPS}",
            argument="num_inference_steps",
        )
    return Steps(
        num_inference_steps,
        _falling("timesteps", timesteps, is_integer, "integers"),
        _falling("sigmas", sigmas, is_number, "finite numbers"),
        begin,
    )


def check_given(sampler: str, options: Mapping[str, Any], asked: Steps) -> None:
    """Raise :class:`InputError` if the sampler does not take the list, or not with these `options`."""
    argument, spec = asked.argument, SAMPLER_SPECS[sampler]
    if argument not in spec.given:
        others = [n for n, s in SAMPLER_SPECS.items() if s.group == spec.group and argument in s.given]
        use = f"use `sampler` {', '.join(others)}, or `num_inference_steps`" if others else "remove it"
        raise InputError(
            f"{argument} was given, which sampler '{sampler}' does not take; {use}", argument=argument
        )
    if asked.timesteps is None:
        return
    logarithmic = options.get("timestep_type") == "continuous"
    fixed = [key for key in ("use_karras_sigmas", "use_exponential_sigmas") if options.get(key)]
    if logarithmic and options["prediction_type"] == "v_prediction":
        fixed.append("timestep_type")
    if fixed:
        raise InputError(
            f"timesteps was given, but the scheduler configuration's {fixed[0]} is {options[fixed[0]]!r}:"
            " noise levels make the timesteps; use `num_inference_steps`, or export with other"
            f" `scheduler` settings: {fixed[0]}",
            argument="timesteps",
        )
    train, highest = options["num_train_timesteps"], int(asked.timesteps[0])
    if highest >= train:
        raise InputError(
            f"timesteps begins at {highest}; this scheduler configuration has timesteps 0 to {train - 1}:"
            " give lower ones",
            argument="timesteps",
        )


def _falling(name: str, values: Any, fits: Callable[[Any], bool], kind: str) -> Given | None:
    if values is None:
        return None
    accepted = f"give a list of {kind}, none below 0, highest first"
    several = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(several, (list, tuple)):
        several = [one.item() if isinstance(one, np.generic) else one for one in several]
    if not isinstance(several, list) or not all(map(fits, several)):
        raise InputError(f"{name} is {_shown(values)}; {accepted}", argument=name)
    if not 1 <= len(several) <= MOST_STEPS:
        raise InputError(f"{name} has {len(several)} values; give 1 to {MOST_STEPS}", argument=name)
    for before, value in pairwise([LARGEST + 1, *several]):
        if not before > value >= 0:
            raise InputError(f"{name} has {_shown(value)} out of order; {accepted}", argument=name)
    return np.array(several, np.float64)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
