"""Every sampler as data: the diffusers class that it equals, its file in the runtime, the options that it
reads; and the scheduler classes whose configurations the samplers read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from controlnext.families.options import (
    OptionTable,
    choice,
    flag,
    integer,
    number,
    off,
    step_numbers,
    trained_betas,
    unset,
)

Group = Literal["noise", "flow"]


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its code, the diffusers class that it equals, and its options.

    ``scheduler``: the diffusers class. ``sampler``: file and class in :mod:`controlnext.runtime.samplers`.
    ``group``: the prediction type of its denoisers. ``options``: the keys that it reads from a scheduler's
    configuration.
    """

    scheduler: str
    sampler: str
    group: Group
    options: OptionTable


_SCHEDULE: OptionTable = {
    "num_train_timesteps": integer(1000, 1),
    "beta_start": number(0.0001, 0),
    "beta_end": number(0.02, 0),
    "beta_schedule": choice("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": trained_betas(),
    "rescale_betas_zero_snr": flag(),
    "prediction_type": choice("epsilon", "v_prediction", "sample"),
    "timestep_spacing": choice("linspace", "leading", "trailing"),
    "steps_offset": integer(0, 0),
}
"""Options of every scheduler class."""

_SIGMAS: OptionTable = {
    "use_karras_sigmas": flag(),
    "use_exponential_sigmas": flag(),
    "use_beta_sigmas": off(),
    "sigma_min": number(None, 0, above=True),
    "sigma_max": number(None, 0, above=True),
    "final_sigmas_type": choice("zero", "sigma_min"),
}
"""Options of the classes whose schedule is a list of noise levels."""

_THRESHOLD: OptionTable = {
    "thresholding": flag(),
    "dynamic_thresholding_ratio": number(0.995, 0, 1),
    "sample_max_value": number(1.0, 0, above=True),
}
"""Options of the classes that can limit the predicted clean sample by dynamic thresholding."""

_ALPHA_BARS: OptionTable = {
    **_SCHEDULE,
    **_THRESHOLD,
    "timestep_spacing": choice("leading", "trailing", "linspace"),
    "clip_sample": flag(True),
    "clip_sample_range": number(1.0, 0),
}
"""Options of DDIM and DDPM."""

_MULTISTEP: OptionTable = {
    **_SCHEDULE,
    **_SIGMAS,
    **_THRESHOLD,
    "lower_order_final": flag(True),
    "use_flow_sigmas": off(),
    "use_dynamic_shifting": off(),
    "solver_order": integer(2, 1),
}

SAMPLER_SPECS: Mapping[str, SamplerSpec] = MappingProxyType(
    {
        "unipc": SamplerSpec(
            "UniPCMultistepScheduler",
            "unipc:UniPCSampler",
            "noise",
            {
                **_MULTISTEP,
                # the last three belong to other solvers' configurations; diffusers treats them as bh2
                "solver_type": choice("bh2", "bh1", "midpoint", "heun", "logrho"),
                "predict_x0": flag(True),
                "disable_corrector": step_numbers(),
                "solver_p": unset(),
                "shift_terminal": unset(),
            },
        ),
        "euler": SamplerSpec(
            "EulerDiscreteScheduler",
            "euler:EulerSampler",
            "noise",
            {
                **_SCHEDULE,
                **_SIGMAS,
                "prediction_type": choice("epsilon", "v_prediction", "sample", "original_sample"),
                "interpolation_type": choice("linear", "log_linear"),
                "timestep_type": choice("discrete", "continuous"),
            },
        ),
        "euler_a": SamplerSpec(
            "EulerAncestralDiscreteScheduler",
            "euler_a:EulerAncestralSampler",
            "noise",
            {**_SCHEDULE, "prediction_type": choice("epsilon", "v_prediction")},
        ),
        "ddim": SamplerSpec(
            "DDIMScheduler", "ddim:DDIMSampler", "noise", {**_ALPHA_BARS, "set_alpha_to_one": flag(True)}
        ),
        "ddpm": SamplerSpec(
            "DDPMScheduler",
            "ddpm:DDPMSampler",
            "noise",
            {
                **_ALPHA_BARS,
                "variance_type": choice("fixed_small", None, "fixed_small_log", "fixed_large"),
            },
        ),
        "dpmpp_2m": SamplerSpec(
            "DPMSolverMultistepScheduler",
            "dpmpp_2m:DPMPP2MSampler",
            "noise",
            {
                **_MULTISTEP,
                "algorithm_type": choice("dpmsolver++"),
                # the last three belong to other solvers' configurations; diffusers treats them as midpoint
                "solver_type": choice("midpoint", "heun", "logrho", "bh1", "bh2"),
                "euler_at_final": flag(),
                "use_lu_lambdas": off(),
                "lambda_min_clipped": number(-math.inf),
                "variance_type": choice(
                    None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"
                ),
            },
        ),
        "flow_euler": SamplerSpec(
            "FlowMatchEulerDiscreteScheduler",
            "flow_euler:FlowEulerSampler",
            "flow",
            {
                "num_train_timesteps": integer(1000, 1),
                "shift": number(1.0, 0, above=True),
                "use_dynamic_shifting": off(),
                "shift_terminal": number(None, 0, 1),
                "invert_sigmas": flag(),
                "stochastic_sampling": flag(),
                "use_karras_sigmas": flag(),
                "use_exponential_sigmas": flag(),
                "use_beta_sigmas": off(),
                # not parameters of the class, but diffusers reads them if another class's configuration
                # has them
                "sigma_min": number(None, 0, above=True),
                "sigma_max": number(None, 0, above=True),
            },
        ),
    }
)


def samplers_of(group: Group) -> tuple[str, ...]:
    """Return the names of a group's samplers, in the table's order."""
    return tuple(name for name, spec in SAMPLER_SPECS.items() if spec.group == group)


NOISE_SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Classes for denoisers that predict noise. A configuration of one of them means the same to all of them, as
diffusers' ``from_config`` assumes. Other classes differ: EDM has other noise levels, LCM and TCD are for
distilled denoisers, Heun and KDPM2 have other defaults and call the denoiser twice in each step."""
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
"""The same for flow matching."""
