"""Options of the samplers for few steps and of those with several evaluations a step; given steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from controlnext.errors import InputError
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.runtime.samplers import make_sampler
from support.sampler_runs import compare, sdxl
from support.scheduler_configs import SD3, SVD

# as in test_samplers.py; measured: 8e-6
TOLERANCE = 2e-5
DISTILLED = ("lcm", "tcd")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *itertools.product(
        DISTILLED,
        (
            sdxl(original_inference_steps=100),
            sdxl(original_inference_steps=30),
            sdxl(timestep_scaling=3.0),
            sdxl(timestep_scaling=0),
            sdxl(set_alpha_to_one=True, steps_offset=3),
        ),
    ),
    *(("tcd", sdxl(eta=eta, prediction_type=p)) for eta in (0.3, 0.75, 1) for p in PREDICTIONS),
    ("tcd", sdxl(eta=1.0, rescale_betas_zero_snr=True, prediction_type="v_prediction")),
    ("heun", sdxl(clip_sample=True, clip_sample_range=1.5, use_karras_sigmas=True)),
    *(
        ("dpmpp_sde", sdxl(solver_order=order, solver_type=kind, algorithm_type=algorithm, **end))
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
        for algorithm in ("dpmsolver++", "sde-dpmsolver++")
        for end in ({}, {"final_sigmas_type": "sigma_min"})
    ),
    ("dpmpp_sde", sdxl(lower_order_final=True, final_sigmas_type="sigma_min")),
    *(("dpmpp_2m_sde", sdxl(solver_order=order)) for order in (1, 3, 4)),
    *(("dpmpp_2m_sde", sdxl(solver_type=kind)) for kind in ("heun", "bh2")),
    ("dpmpp_2m_sde", sdxl(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)),
    ("dpmpp_2m_sde", sdxl(euler_at_final=True, final_sigmas_type="sigma_min")),
    *(
        (name, sdxl(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2"))
        for name in ("dpmpp_sde", "dpmpp_2m_sde")
    ),
    # what the configuration says of it does not matter
    ("dpmpp_2m_sde", sdxl(algorithm_type="dpmsolver++")),
]


@pytest.mark.parametrize(("name", "config"), OPTIONS)
def test_options(name: str, config: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 4, 14, 20):
        compare(name, config, steps, TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["lcm", "tcd", "heun", "dpmpp_sde", "dpmpp_2m_sde"]),
    steps=st.integers(1, 50),
    options=st.fixed_dictionaries(
        {},
        optional={
            "prediction_type": st.sampled_from(PREDICTIONS),
            "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
            "steps_offset": st.integers(0, 1),
            "use_karras_sigmas": st.booleans(),
            "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
            "original_inference_steps": st.integers(50, 1000),
            "eta": st.floats(0, 1),
            "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]),
            "solver_order": st.integers(1, 3),
            "clip_sample": st.booleans(),
            "thresholding": st.booleans(),
        },
    ),
)
def test_any_options_and_number_of_steps(name: str, steps: int, options: dict[str, Any]) -> None:
    compare(name, sdxl(**options), steps, TOLERANCE)


def taking(argument: str) -> list[str]:
    return [name for name, spec in SAMPLER_SPECS.items() if argument in spec.given]


@pytest.mark.parametrize("name", taking("timesteps"))
def test_given_timesteps(name: str) -> None:
    """The published ones of "Align your steps", and others."""
    published = AysSchedules["StableDiffusionXLTimesteps"]
    for timesteps in (published, [999], [999, 749, 499, 249], [800, 1, 0], list(range(48, -1, -3))):
        compare(name, sdxl(eta=0.3), None, TOLERANCE, timesteps=timesteps)
    sampler = make_sampler(name, sdxl(), timesteps=np.array(published))
    assert list(dict.fromkeys(sampler.timesteps.tolist())) == published


@pytest.mark.parametrize(
    ("name", "config", "sigmas"),
    [
        ("euler", sdxl(), AysSchedules["StableDiffusionXLSigmas"]),
        ("euler", sdxl(timestep_spacing="trailing", use_karras_sigmas=True), [14.6, 3.8, 0.03]),
        ("euler", SVD, AysSchedules["StableDiffusionVideoSigmas"]),
        ("flow_euler", SD3, [1.0, 0.75, 0.5, 0.25]),
        ("flow_euler", SD3, [0.9]),
        ("flow_euler", {**SD3, "use_karras_sigmas": True}, [1.0, 0.5, 0.1]),
        ("flow_euler", {**SD3, "shift_terminal": 0.1, "invert_sigmas": True}, [1.0, 0.5, 0.1]),
    ],
)
def test_given_sigmas(name: str, config: dict[str, Any], sigmas: list[float]) -> None:
    compare(name, config, None, TOLERANCE, sigmas=sigmas)


@pytest.mark.parametrize(
    ("name", "config", "asked", "message"),
    [
        ("unipc", sdxl(), {"timesteps": [999]}, "'unipc' does not take; use `sampler` euler, ddpm,.*, or"),
        ("ddim", sdxl(), {"sigmas": [1, 0]}, "'ddim' does not take; use `sampler` euler, or `num_inference"),
        ("flow_euler", SD3, {"timesteps": [999]}, "'flow_euler' does not take; remove it"),
        ("flow_euler", SD3, {"sigmas": [14.6, 0.5]}, "sigmas begins at 14.6; .* from 0 to 1"),
        ("euler", sdxl(use_karras_sigmas=True), {"timesteps": [999]}, "use_karras_sigmas is True"),
        ("heun", sdxl(use_exponential_sigmas=True), {"timesteps": [999]}, "use_exponential_sigmas is True"),
        ("euler", {**SVD, "use_karras_sigmas": False}, {"timesteps": [9]}, "timestep_type is 'continuous'"),
        ("lcm", sdxl(), {"timesteps": [1000, 500]}, "begins at 1000; .* 0 to 999"),
        ("euler", sdxl(), {"sigmas": [3.0]}, "has 1 values.*at least 2"),
        ("euler", sdxl(), {"sigmas": [3.0, 0.0]}, ""),
        ("euler", sdxl(), {"timesteps": [5, 5]}, "timesteps has 5 out of order; .*highest first"),
        ("euler", sdxl(), {"timesteps": [5, -1]}, "timesteps has -1 out of order"),
        ("euler", sdxl(), {"timesteps": []}, "timesteps has 0 values"),
        ("euler", sdxl(), {"timesteps": [1.5]}, "give a list of integers"),
        ("euler", sdxl(), {"timesteps": 999}, "timesteps is 999; give a list"),
        ("euler", sdxl(), {"sigmas": [10**400, 0]}, "out of order"),
        ("euler", sdxl(), {"sigmas": [1, float("nan")]}, "give a list of finite numbers"),
        ("euler", sdxl(), {"sigmas": [True, 0]}, "give a list of finite numbers"),
        ("euler", sdxl(), {"sigmas": [2, 1], "timesteps": [9]}, "`timesteps` and `sigmas` were given"),
        ("euler", sdxl(), {"sigmas": [2, 1], "num_inference_steps": 1}, "`num_inference_steps` and `sigmas`"),
        ("euler", sdxl(), {}, "num_inference_steps is None"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(
    name: str, config: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    if not message:
        make_sampler(name, config, **asked)
        return
    with pytest.raises(InputError, match=message) as caught:
        make_sampler(name, config, **asked)
    assert "\n" not in str(caught.value)
    assert caught.value.argument in ("timesteps", "sigmas", "num_inference_steps")
