"""Whole runs of the samplers and of diffusers' schedulers, compared step by step."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.reference.stock import make_scheduler
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import make_sampler
from support.scheduler_configs import SD3, SDXL

SCHEDULERS: dict[str, Any] = {
    name: getattr(diffusers, spec.scheduler) for name, spec in SAMPLER_SPECS.items()
}

BASES = {**dict.fromkeys(SCHEDULERS, SDXL), "flow_euler": SD3}
DIFFUSION = [name for name in SCHEDULERS if name != "flow_euler"]
FEW_STEPS = ("lcm", "tcd")
"""Samplers whose runs have at most as many steps as the distillation: 50."""

SHAPE = (2, 4, 6, 6)
PATTERN = np.random.RandomState(0).standard_normal(SHAPE).astype(np.float32)

Run = tuple[list[float], list[NDArray[np.float32]]]


def denoise(sample: NDArray[np.float32], timestep: float) -> NDArray[np.float32]:
    """Cheap stand-in for a network: depends on the sample, the place and the timestep."""
    return np.float32(0.3) * sample + np.float32(np.sin(timestep / 100)) * PATTERN


def run_diffusers(name: str, config: dict[str, Any], steps: int | None, **given: Any) -> Run:
    """Timesteps given to the network, and the sample before the first step and after each."""
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps, **given) if steps else scheduler.set_timesteps(**given)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(3), "eta": config.get("eta", 0.0)}
    extra = {key: value for key, value in extra.items() if key in accepted}
    # SD3's pipeline starts from the noise as it is and never scales what it gives the network
    sample = torch.from_numpy(PATTERN) * getattr(scheduler, "init_noise_sigma", 1.0)
    samples = [sample.numpy()]
    for timestep in scheduler.timesteps:
        scaled = sample if name == "flow_euler" else scheduler.scale_model_input(sample, timestep)
        output = torch.from_numpy(denoise(scaled.numpy(), float(timestep)))
        sample = scheduler.step(output, timestep, sample, return_dict=False, **extra)[0]
        samples.append(sample.numpy())
    return [float(timestep) for timestep in scheduler.timesteps], samples


def run_ours(name: str, config: dict[str, Any], steps: int | None, **given: Any) -> Run:
    """The same with the sampler."""
    sampler = make_sampler(name, config, steps, **given)
    generator = TorchGenerator(3)
    sample = PATTERN * sampler.init_noise_sigma
    samples = [sample]
    for i, timestep in enumerate(sampler.timesteps):
        output = denoise(sampler.scale_model_input(sample, i), float(timestep))
        sample = sampler.step(output, i, sample, generator if sampler.needs_noise else None)
        assert sample.dtype == np.float32
        samples.append(sample)
    return [float(timestep) for timestep in sampler.timesteps], samples


def compare(name: str, config: dict[str, Any], steps: int | None, tolerance: float, **given: Any) -> None:
    """Assert that every sample of a run differs by at most `tolerance` of diffusers' largest value."""
    expected_timesteps, expected = run_diffusers(name, config, steps, **given)
    timesteps, samples = run_ours(name, config, steps, **given)
    np.testing.assert_allclose(timesteps, expected_timesteps, rtol=3e-7, atol=3e-4)
    for i, (ours, theirs) in enumerate(zip(samples, expected, strict=True)):
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert difference < tolerance, f"{name}, {steps} steps, after step {i}: {difference:.2e}"


def sdxl(**changes: Any) -> dict[str, Any]:
    """Return the published configuration of SDXL with changes."""
    return {**SDXL, **changes}
