"""Every sampler as data: the diffusers class that it equals, its file in the runtime, the options that it
reads; and the scheduler classes whose configurations the samplers read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

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
Given = Literal["timesteps", "sigmas"]


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its code, the diffusers class that it equals, and its options.

    ``scheduler``: the diffusers class. ``sampler``: file and class in :mod:`controlnext.runtime.samplers`.
    ``group``: the prediction type of its denoisers. ``options``: the keys that it reads from a scheduler's
    configuration. ``fixed``: settings of the class that make it this sampler, whatever the configuration
    says. ``given``: what a call may give in place of the number of steps.
    """

    scheduler: str
    sampler: str
    group: Group
    options: OptionTable
    fixed: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[Given, ...] = ()


_BETAS: OptionTable = {
    "num_train_timesteps": integer(1000, 1),
    "beta_start": number(0.0001, 0),
    "beta_end": number(0.02, 0),
    "beta_schedule": choice("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": trained_betas(),
    "prediction_type": choice("epsilon", "v_prediction", "sample"),
}
"""Options of every scheduler class."""

_SPACING: OptionTable = {
    "timestep_spacing": choice("linspace", "leading", "trailing"),
    "steps_offset": integer(0, 0),
}

_SCHEDULE: OptionTable = {**_BETAS, **_SPACING, "rescale_betas_zero_snr": flag()}

_LATENT_BETAS: OptionTable = {"beta_start": number(0.00085, 0), "beta_end": number(0.012, 0)}
"""Defaults of the classes that came after latent diffusion."""

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

_CONSISTENCY: OptionTable = {
    **_ALPHA_BARS,
    **_LATENT_BETAS,
    "beta_schedule": choice("scaled_linear", "linear", "squaredcos_cap_v2"),
    "original_inference_steps": integer(50, 1),
    "clip_sample": flag(),
    # their steps are those of the distillation: these two, and without a last step at timestep -1 the third,
    # have no effect
    "timestep_spacing": choice("leading", "trailing", "linspace"),
    "timestep_scaling": number(10.0),
    "set_alpha_to_one": flag(True),
}
"""Options of LCM and TCD."""

_SOLVER: OptionTable = {
    **_SIGMAS,
    **_THRESHOLD,
    "lower_order_final": flag(True),
    "use_flow_sigmas": off(),
    "use_dynamic_shifting": off(),
    "solver_order": integer(2, 1),
}
"""Options of the high-order solvers."""

_MULTISTEP: OptionTable = {**_SCHEDULE, **_SOLVER}

_DPM_SOLVER: OptionTable = {
    # the last three belong to other solvers' configurations; diffusers treats them as midpoint
    "solver_type": choice("midpoint", "heun", "logrho", "bh1", "bh2"),
    "lambda_min_clipped": number(-math.inf),
    "variance_type": choice(None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
"""Options of the DPM-Solvers alone."""

_DPM_MULTISTEP: OptionTable = {
    **_MULTISTEP,
    **_DPM_SOLVER,
    "euler_at_final": flag(),
    "use_lu_lambdas": off(),
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
            given=("timesteps", "sigmas"),
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
            given=("timesteps",),
        ),
        "dpmpp_2m": SamplerSpec(
            "DPMSolverMultistepScheduler",
            "dpmpp_2m:DPMPP2MSampler",
            "noise",
            {**_DPM_MULTISTEP, "algorithm_type": choice("dpmsolver++")},
            given=("timesteps",),
        ),
        "lcm": SamplerSpec("LCMScheduler", "lcm:LCMSampler", "noise", _CONSISTENCY, given=("timesteps",)),
        "tcd": SamplerSpec(
            "TCDScheduler",
            "tcd:TCDSampler",
            "noise",
            # an argument of diffusers' pipelines, with their default, not of the class
            {**_CONSISTENCY, "eta": number(0.0, 0, 1)},
            given=("timesteps",),
        ),
        "heun": SamplerSpec(
            "HeunDiscreteScheduler",
            "heun:HeunSampler",
            "noise",
            {
                **_BETAS,
                **_LATENT_BETAS,
                **_SPACING,
                **{key: option for key, option in _SIGMAS.items() if key != "final_sigmas_type"},
                "clip_sample": flag(),
                "clip_sample_range": number(1.0, 0),
            },
            given=("timesteps",),
        ),
        "dpmpp_sde": SamplerSpec(
            "DPMSolverSinglestepScheduler",
            "dpmpp_sde:DPMPPSDESampler",
            "noise",
            {
                **_BETAS,
                **_SOLVER,
                **_DPM_SOLVER,
                "solver_order": integer(2, 1, 3),
                "lower_order_final": flag(),
                "algorithm_type": choice("dpmsolver++", "sde-dpmsolver++"),
            },
            given=("timesteps",),
        ),
        "dpmpp_2m_sde": SamplerSpec(
            "DPMSolverMultistepScheduler",
            "dpmpp_2m_sde:DPMPP2MSDESampler",
            "noise",
            _DPM_MULTISTEP,
            fixed={"algorithm_type": "sde-dpmsolver++"},
            given=("timesteps",),
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
            given=("sigmas",),
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
    "LCMScheduler",
    "TCDScheduler",
    "HeunDiscreteScheduler",
)
"""Classes for denoisers that predict noise. A configuration of one of them means the same to all of them, as
diffusers' ``from_config`` assumes. Other classes differ: EDM has other noise levels, no sampler equals
KDPM2."""
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
"""The same for flow matching."""
