"""Samplers: diffusers' schedulers in NumPy, each in a file of its own.

    sampler = make_sampler("unipc", scheduler_config, 20)
    sample = noise * sampler.init_noise_sigma
    for i, timestep in enumerate(sampler.timesteps):
        output = denoise(sampler.scale_model_input(sample, i), timestep)
        sample = sampler.step(output, i, sample, generator)

To add one: subclass `Sampler`, enter it below, and its options in :mod:`controlnext.families.samplers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlnext.errors import InputError
from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.ddim import DDIMSampler
from controlnext.runtime.samplers.ddpm import DDPMSampler
from controlnext.runtime.samplers.dpmpp_2m import DPMPP2MSampler
from controlnext.runtime.samplers.euler import EulerSampler
from controlnext.runtime.samplers.euler_a import EulerAncestralSampler
from controlnext.runtime.samplers.flow_euler import FlowEulerSampler
from controlnext.runtime.samplers.unipc import UniPCSampler

__all__ = ["SAMPLERS", "Sampler", "make_sampler"]

SAMPLERS: dict[str, type[Sampler]] = {
    sampler.name: sampler
    for sampler in (
        UniPCSampler,
        EulerSampler,
        EulerAncestralSampler,
        DDIMSampler,
        DDPMSampler,
        DPMPP2MSampler,
        FlowEulerSampler,
    )
}


def make_sampler(name: str, config: Mapping[str, Any], num_inference_steps: int) -> Sampler:
    """A sampler set up for one run.

    Args:
        name: a key of `SAMPLERS`.
        config: the contents of a scheduler_config.json of any scheduler class, read as diffusers'
            `from_config` of the sampler's own class reads it.
        num_inference_steps: 1 or more; ddim and ddpm take no more than there are training timesteps.

    Raises:
        InputError: an unknown name, a number of steps or an option that is not supported.
    """
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: take one of {', '.join(SAMPLERS)}", argument="sampler")
    return SAMPLERS[name](config, num_inference_steps)
