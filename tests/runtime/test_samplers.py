"""The samplers against diffusers' schedulers, step by step over whole runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.families import FAMILIES, Family
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.reference.stock import make_scheduler
from controlnext.runtime import samplers
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import make_sampler
from support.sampler_runs import BASES, DIFFUSION, FEW_STEPS, PATTERN, SCHEDULERS, compare, sdxl
from support.scheduler_configs import SD3, SDXL, SVD

# Largest difference at any step, relative to the largest value of diffusers' sample. Both sides work in
# float32; torch's sqrt, log and exp differ from NumPy's, and between processors, in the last bit, and the
# differences add up over the steps. Measured: 2e-6 over the base runs, 7e-6 over the options.
BASE_TOLERANCE = 5e-6
FLOW_TOLERANCE = 2e-6
OPTION_TOLERANCE = 2e-5
# Measured: 7e-4. Where a schedule starts at a noise level of thousands, the Euler samplers' sample is as
# large, and diffusers' float32 arithmetic itself is off by this much once it has come down to single digits.
HUGE_NOISE_TOLERANCE = 2e-3

OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "linspace": sdxl(timestep_spacing="linspace"),
    "trailing": sdxl(timestep_spacing="trailing"),
    "leading, no offset": sdxl(steps_offset=0),
    "v": sdxl(prediction_type="v_prediction"),
    "v, leading, zero SNR": sdxl(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "linear betas": sdxl(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    "cosine betas": sdxl(beta_schedule="squaredcos_cap_v2"),
    "trained betas": sdxl(trained_betas=np.linspace(0.0002, 0.01, 1000).tolist()),
    "500 training timesteps": sdxl(num_train_timesteps=500),
    "lowest sigma": sdxl(final_sigmas_type="sigma_min"),
    "Karras": sdxl(use_karras_sigmas=True),
    "Karras, lowest sigma": sdxl(use_karras_sigmas=True, final_sigmas_type="sigma_min"),
    "Karras, cosine betas": sdxl(use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"),
    "Karras, own range": sdxl(use_karras_sigmas=True, sigma_min=0.05, sigma_max=20.0),
    "exponential": sdxl(use_exponential_sigmas=True),
    "exponential, lowest sigma": sdxl(use_exponential_sigmas=True, final_sigmas_type="sigma_min"),
    "SVD": SVD,
    "clip": sdxl(clip_sample=True),
    "clip wider": sdxl(clip_sample=True, clip_sample_range=2.0),
    "threshold": sdxl(thresholding=True, sample_max_value=1.7, clip_sample=True),
    "defaults listed": sdxl(_use_default_values=["timestep_spacing", "steps_offset", "beta_schedule"]),
}
HUGE_NOISE: dict[str, dict[str, Any]] = {
    f"{kind}, {spacing}": {**options, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    for kind, options in (
        ("zero SNR", sdxl(rescale_betas_zero_snr=True)),
        ("cosine betas", sdxl(beta_schedule="squaredcos_cap_v2")),
    )
    for spacing in ("trailing", "linspace")
}
OWN_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("euler", sdxl(interpolation_type="log_linear", timestep_spacing=s)) for s in ("leading", "linspace")),
    ("euler", {**SVD, "interpolation_type": "log_linear", "use_karras_sigmas": False}),
    ("euler", sdxl(timestep_type="continuous")),
    ("ddim", sdxl(set_alpha_to_one=True)),
    *(("ddpm", sdxl(variance_type=variance)) for variance in ("fixed_small_log", "fixed_large")),
    *(("unipc", sdxl(solver_order=order)) for order in (1, 3, 4)),
    *(("unipc", sdxl(solver_type="bh1", final_sigmas_type="sigma_min", solver_order=o)) for o in (1, 2, 3)),
    *(("unipc", sdxl(solver_type=other)) for other in ("midpoint", "heun", "logrho")),
    ("unipc", sdxl(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)),
    ("unipc", sdxl(disable_corrector=[0, 2, 5])),
    *(
        ("unipc", sdxl(predict_x0=False, final_sigmas_type="sigma_min", prediction_type=prediction))
        for prediction in ("epsilon", "v_prediction", "sample")
    ),
    *(("dpmpp_2m", sdxl(solver_order=order)) for order in (1, 3, 4)),
    *(("dpmpp_2m", sdxl(solver_type=other)) for other in ("heun", "bh2", "logrho")),
    ("dpmpp_2m", sdxl(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)),
    ("dpmpp_2m", sdxl(euler_at_final=True, final_sigmas_type="sigma_min")),
    ("dpmpp_2m", sdxl(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2")),
    ("dpmpp_2m", sdxl(variance_type="fixed_small")),
    *((name, sdxl(prediction_type="sample")) for name in DIFFUSION if name != "euler_a"),
    *(
        ("flow_euler", {**SD3, **changes})
        for changes in (
            {"shift": 1},
            {"shift": 0.5, "num_train_timesteps": 500},
            {"invert_sigmas": True},
            {"stochastic_sampling": True},
            {"stochastic_sampling": True, "invert_sigmas": True},
            {"shift_terminal": 0},
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True},
            {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 0.9},
            {"use_karras_sigmas": True, "sigma_min": 0.01, "_use_default_values": ["sigma_min", "shift"]},
        )
    ),
]


@pytest.mark.parametrize("name", SAMPLER_SPECS)
def test_every_sampler_of_the_table_is_built_at_run_time_and_in_the_reference(name: str) -> None:
    assert make_sampler(name, BASES[name], 4).name == name
    reference = make_scheduler(name, BASES[name])
    assert type(reference).__name__ == SAMPLER_SPECS[name].scheduler


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_has_samplers_of_one_group(family: Family) -> None:
    assert len({SAMPLER_SPECS[name].group for name in family.samplers}) == 1


def test_no_sampler_imports_another() -> None:
    """Shared arithmetic is in separate files."""
    files = {spec.sampler.partition(":")[0] for spec in SAMPLER_SPECS.values()}
    assert len(files) == len(SAMPLER_SPECS)
    for name in files:
        text = (Path(samplers.__file__).parent / f"{name}.py").read_text()
        imported = set(re.findall(r"controlnext\.runtime\.samplers\.(\w+)", text))
        assert not imported & files, name


# lcm and tcd take no more; the other two are slow
UP_TO_50 = (*FEW_STEPS, "dpmpp_sde", "dpmpp_2m_sde")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_count_from_1_to_100(name: str) -> None:
    tolerance = FLOW_TOLERANCE if name == "flow_euler" else BASE_TOLERANCE
    for steps in range(1, 51 if name in UP_TO_50 else 101):
        compare(name, BASES[name], steps, tolerance)


@pytest.mark.parametrize("label", OPTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_options(name: str, label: str) -> None:
    for steps in (1, 2, 5, 15, 20):
        compare(name, OPTIONS[label], steps, OPTION_TOLERANCE)


@pytest.mark.parametrize("label", HUGE_NOISE)
@pytest.mark.parametrize("name", DIFFUSION)
def test_schedules_that_start_at_a_huge_noise_level(name: str, label: str) -> None:
    for steps in (1, 2, 5, 15, 20):
        tolerance = HUGE_NOISE_TOLERANCE if name.startswith("euler") else OPTION_TOLERANCE
        compare(name, HUGE_NOISE[label], steps, tolerance)


@pytest.mark.parametrize(("name", "config"), OWN_OPTIONS)
def test_options_of_one_sampler(name: str, config: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 14, 20):
        compare(name, config, steps, OPTION_TOLERANCE)


@pytest.mark.parametrize("name", sorted(set(DIFFUSION) - {*FEW_STEPS, "dpmpp_sde"}))
def test_the_additional_step_of_some_trailing_schedules(name: str) -> None:
    # 1000 / (1000 / 61) is above 61 in floating point: diffusers takes 62 steps, the last at timestep -1
    config = sdxl(timestep_spacing="trailing", steps_offset=0)
    assert len(make_sampler(name, config, 61).timesteps) == (2 * 62 - 1 if name == "heun" else 62)
    compare(name, config, 61, OPTION_TOLERANCE)


@pytest.mark.parametrize("writer", [*dict.fromkeys(SCHEDULERS.values()), diffusers.PNDMScheduler])
def test_configurations_written_by_any_class(writer: Any, tmp_path: Path) -> None:
    writer.from_config(SDXL).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    # this class's default is off, with which UniPC divides by zero at the end, also in diffusers
    written["lower_order_final"] = True
    for name in SCHEDULERS:
        compare(name, written, 10, OPTION_TOLERANCE)
        live = dict(writer.from_config({}).config)
        assert "_use_default_values" in live
        compare(name, live, 10, OPTION_TOLERANCE)


@pytest.mark.parametrize("name", ["euler", "euler_a", "ddim", "ddpm", "lcm", "tcd", "flow_euler"])
def test_samplers_without_history_are_pure(name: str) -> None:
    sampler = make_sampler(name, SDXL, 10)
    first = sampler.step(PATTERN, 4, PATTERN, TorchGenerator(0))
    sampler.step(PATTERN, 2, PATTERN, TorchGenerator(1))
    np.testing.assert_array_equal(sampler.step(PATTERN, 4, PATTERN, TorchGenerator(0)), first)


def test_a_flow_that_ends_at_a_share_of_noise() -> None:
    """Of one step alone there is no such flow."""
    config = {**SD3, "shift_terminal": 0.1}
    for steps in (2, 5, 20):
        compare("flow_euler", config, steps, FLOW_TOLERANCE)
    with pytest.raises(InputError, match="divides by zero"):
        make_sampler("flow_euler", config, 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_inputs_are_left_alone(name: str) -> None:
    sampler = make_sampler(name, SDXL, 3)
    output, sample = PATTERN.copy(), PATTERN.copy()
    for i in range(3):
        sampler.scale_model_input(sample, i)
        sampler.step(output, i, sample, TorchGenerator(0))
    np.testing.assert_array_equal(output, PATTERN)
    np.testing.assert_array_equal(sample, PATTERN)


@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "heun"])
def test_samplers_with_history_insist_on_the_order(name: str) -> None:
    sampler = make_sampler(name, SDXL, 10)
    with pytest.raises(InputError, match="in order"):
        sampler.step(PATTERN, 1, PATTERN)
    sampler.step(PATTERN, 0, PATTERN, TorchGenerator(0))
    with pytest.raises(InputError, match="in order"):
        sampler.step(PATTERN, 0, PATTERN)


def test_every_option_of_diffusers_is_known_or_has_no_effect() -> None:
    # of flow matching in the other classes and of shifting by the image's size, which are refused
    without_effect = {"flow_shift", "time_shift_type"}
    without_effect |= {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}
    for name, scheduler in SCHEDULERS.items():
        keys = set(scheduler.from_config({}).config) - {"_use_default_values"}
        spec = SAMPLER_SPECS[name]
        assert keys - without_effect <= spec.options.keys() | spec.fixed.keys(), name
        for key, option in SAMPLER_SPECS[name].options.items():
            theirs = scheduler.from_config({}).config.get(key, option.default)
            assert option.default == theirs or (theirs == [] and option.default == ()), (name, key)
