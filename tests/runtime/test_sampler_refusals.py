"""Errors of the samplers: unsupported options, impossible runs, arguments that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import make_sampler

DIFFUSION = [name for name in SAMPLER_SPECS if name != "flow_euler"]
DPM_SOLVERS = ("dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde")

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
SAMPLE = np.ones((2, 4, 6, 6), np.float32)


def config(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "beta_schedule", "sigmoid") for name in DIFFUSION),
        *((name, "prediction_type", "flow_prediction") for name in DIFFUSION),
        *((name, "timestep_spacing", "random") for name in DIFFUSION if name != "dpmpp_sde"),
        *((name, "use_beta_sigmas", True) for name in ("unipc", "euler", "heun", "flow_euler", *DPM_SOLVERS)),
        *((name, "use_flow_sigmas", True) for name in ("unipc", *DPM_SOLVERS)),
        *((name, "final_sigmas_type", "half") for name in ("unipc", "euler", *DPM_SOLVERS)),
        *(("ddpm", "variance_type", kind) for kind in ("learned", "learned_range", "fixed_large_log")),
        ("euler_a", "prediction_type", "sample"),
        ("euler", "interpolation_type", "cubic"),
        ("unipc", "solver_p", {}),
        ("unipc", "shift_terminal", 0.1),
        ("unipc", "solver_type", "bh3"),
        ("unipc", "solver_order", 0),
        ("unipc", "disable_corrector", "all"),
        ("dpmpp_2m", "algorithm_type", "sde-dpmsolver++"),
        ("dpmpp_2m_sde", "use_lu_lambdas", True),
        *((name, "variance_type", "learned") for name in DPM_SOLVERS),
        ("dpmpp_sde", "algorithm_type", "dpmsolver"),
        ("dpmpp_sde", "solver_order", 4),
        ("lcm", "original_inference_steps", 0),
        ("lcm", "timestep_scaling", None),
        *(("tcd", "eta", eta) for eta in (-0.1, 1.1, None, "0.3", float("nan"))),
        ("heun", "beta_schedule", "exp"),
        ("heun", "clip_sample", 1),
        ("ddim", "num_train_timesteps", 0),
        *((name, "num_train_timesteps", 99_999_999_999) for name in SAMPLER_SPECS),
        *((name, "original_inference_steps", 10**9) for name in ("lcm", "tcd")),
        ("ddim", "steps_offset", 1.5),
        ("ddim", "clip_sample", "no"),
        ("ddim", "beta_end", "0.02"),
        ("ddim", "dynamic_thresholding_ratio", 1.5),
        ("ddim", "trained_betas", "betas"),
        ("ddim", "trained_betas", ["0.1"]),
        ("ddim", "trained_betas", [0.1, float("nan")]),
        ("ddim", "trained_betas", [[0.1]]),
        ("unipc", "disable_corrector", [True]),
        ("euler", "sigma_min", 0),
        ("flow_euler", "use_dynamic_shifting", True),
        ("flow_euler", "shift", 0),
        ("flow_euler", "shift", None),
        ("flow_euler", "shift_terminal", 1.5),
        ("flow_euler", "stochastic_sampling", "yes"),
    ],
)
def test_unsupported_options_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{option}.*accepted: "):
        make_sampler(name, config(**{option: value}), 10)


@pytest.mark.parametrize(
    ("name", "options", "steps", "message"),
    [
        ("euler_b", CONFIG, 10, "unknown sampler 'euler_b'.*unipc"),
        ("unipc", CONFIG, 0, "num_inference_steps is 0"),
        ("unipc", CONFIG, -3, "num_inference_steps is -3"),
        ("unipc", CONFIG, 2.5, "num_inference_steps is 2.5"),
        ("ddim", CONFIG, 1001, "1 to 1000 steps"),
        ("ddpm", CONFIG, 1001, "1 to 1000 steps"),
        ("ddim", CONFIG, 1000, "first timestep.*1000"),
        ("lcm", CONFIG, 51, "1 to 50 steps.*original_inference_steps"),
        ("tcd", config(original_inference_steps=4), 5, "1 to 4 steps.*original_inference_steps"),
        (
            "lcm",
            config(original_inference_steps=50, num_train_timesteps=49),
            4,
            "50 original_.* of 49",
        ),
        ("lcm", config(rescale_betas_zero_snr=True), 4, "divides by zero"),
        ("tcd", config(rescale_betas_zero_snr=True), 4, "divides by zero"),
        ("dpmpp_2m_sde", CONFIG, 1000, "repeats a level"),
        ("dpmpp_sde", config(trained_betas=[0.1] * 5, num_train_timesteps=5), 50, "repeats a level"),
        ("heun", config(use_karras_sigmas=True, use_exponential_sigmas=True), 10, "turn one off"),
        ("unipc", [], 10, "mapping"),
        ("unipc", CONFIG, 1000, "repeats a level"),
        ("dpmpp_2m", CONFIG, 1000, "repeats a level"),
        ("unipc", config(solver_type="bh1"), 10, "divides by zero"),
        ("unipc", config(lower_order_final=False), 10, "divides by zero"),
        ("unipc", config(lower_order_final=False, solver_order=3), 10, "divides by zero"),
        ("unipc", config(predict_x0=False), 10, "divides by zero"),
        ("ddim", config(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 10, "divides by zero"),
        ("euler", config(use_karras_sigmas=True, use_exponential_sigmas=True), 10, "turn one off"),
        ("flow_euler", config(use_karras_sigmas=True, use_exponential_sigmas=True), 10, "turn one off"),
        ("flow_euler", CONFIG, 0, "num_inference_steps is 0"),
        ("euler", config(beta_end=1.5), 10, "betas range"),
        ("euler", config(trained_betas=[0.1, -0.1]), 10, "betas range"),
        ("ddim", config(trained_betas=[0.1] * 9), 5, "9 trained_betas for 1000 .*num_train_timesteps=9 or"),
    ],
)
def test_what_cannot_run_is_refused(name: str, options: Any, steps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_sampler(name, options, steps)


def test_a_refused_option_says_how_to_go_on() -> None:
    with pytest.raises(InputError) as caught:
        make_sampler("euler_a", config(prediction_type="sample"), 10)
    assert str(caught.value).endswith(
        "; run with another sampler, or export again with `scheduler` prediction_type=VALUE, an accepted"
        " value"
    )


def test_bad_steps_are_refused() -> None:
    sampler = make_sampler("euler_a", CONFIG, 10)
    with pytest.raises(InputError, match="out of range"):
        sampler.step(SAMPLE, 10, SAMPLE, TorchGenerator(0))
    with pytest.raises(InputError, match="shape"):
        sampler.step(SAMPLE[:1], 0, SAMPLE, TorchGenerator(0))
    with pytest.raises(InputError, match="generator"):
        sampler.step(SAMPLE, 0, SAMPLE)
