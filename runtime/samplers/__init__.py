"""Samplers: diffusers' schedulers in NumPy, one file each.

    sampler = make_sampler("unipc", scheduler_config, 20)
    sample = noise * sampler.init_noise_sigma
    for i, timestep in enumerate(sampler.timesteps):
        output = denoise(sampler.scale_model_input(sample, i), timestep)
        sample = sampler.step(output, i, sample, generator)

To add one: subclass `Sampler` in a file here, and add it to :mod:`controlnext.families.samplers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.steps import Given, read_steps

__all__ = ["Sampler", "make_sampler", "sampler_class"]


def sampler_class(name: str) -> type[Sampler]:
    """Return the class of the sampler ``name``, a key of `SAMPLER_SPECS`."""
    module, _, cls = SAMPLER_SPECS[name].sampler.partition(":")
    found: type[Sampler] = getattr(import_module(f"{__name__}.{module}"), cls)
    return found


def make_sampler(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | Given | None = None,
    sigmas: Sequence[float] | Given | None = None,
    begin: int = 0,
) -> Sampler:
    """Return a sampler set up for one run.

    Args:
        name: a key of `SAMPLER_SPECS`.
        config: the contents of a scheduler_config.json of any scheduler class, read as diffusers'
            `from_config` of the sampler's own class reads it.
        num_inference_steps: at least 1; for some samplers there is a highest number too.
        timesteps, sigmas: in place of it, for the samplers whose `given` in `SAMPLER_SPECS` has the name: the
            training timesteps of the steps, or their noise levels, highest first.
        begin: index of the first step that is taken, as in diffusers' `set_begin_index`.

    Raises:
        InputError: an unknown name, steps or an option that are not supported.
    """
    if name not in SAMPLER_SPECS:
        raise InputError(
            f"unknown sampler {name!r}; accepted: {', '.join(SAMPLER_SPECS)}", argument="sampler"
        )
    with np.errstate(all="ignore"):
        # what is not finite is refused by each sampler, or where a run comes to it
        return sampler_class(name)(config, read_steps(num_inference_steps, timesteps, sigmas, begin))
