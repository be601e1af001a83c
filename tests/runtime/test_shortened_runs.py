"""Runs that start from an image, at a later step, equal diffusers' schedulers with a begin index."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from controlnext.reference.stock import make_scheduler
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import make_sampler
from support.sampler_runs import BASES, PATTERN, SCHEDULERS, denoise, sdxl

TOLERANCE = 1e-5
"""Largest difference at any step, relative to the largest value; measured: 3e-6."""
CLEAN = np.random.RandomState(1).standard_normal(PATTERN.shape).astype(np.float32)
MASK = (np.random.RandomState(2).random_sample((1, 1, *PATTERN.shape[2:])) > 0.5).astype(np.float32)

OPTIONS: list[tuple[str, dict[str, Any], int]] = [
    *((name, BASES[name], 10) for name in SCHEDULERS),
    *((name, sdxl(timestep_spacing="trailing"), 10) for name in SCHEDULERS if name != "flow_euler"),
    ("unipc", sdxl(solver_order=3), 6),
    ("unipc", sdxl(solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"), 20),
    ("dpmpp_2m", sdxl(solver_order=3, use_karras_sigmas=True), 20),
    ("dpmpp_sde", sdxl(solver_order=3, algorithm_type="sde-dpmsolver++"), 12),
    ("euler", sdxl(use_karras_sigmas=True), 10),
]


def _diffusers(name: str, config: dict[str, Any], steps: int, skipped: int) -> list[np.ndarray]:
    """The samples of an inpainting run of diffusers' pipelines."""
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    begin = skipped * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(3), "eta": 0.0}
    extra = {key: value for key, value in extra.items() if key in accepted}
    clean, noise, mask = (torch.from_numpy(array) for array in (CLEAN, PATTERN, MASK))

    def noisy(timestep: torch.Tensor) -> torch.Tensor:
        if name == "flow_euler":
            return scheduler.scale_noise(clean, timestep, noise)
        return scheduler.add_noise(clean, noise, timestep)

    sample = noisy(timesteps[:1])
    samples = [sample.numpy()]
    for i, timestep in enumerate(timesteps):
        scaled = sample if name == "flow_euler" else scheduler.scale_model_input(sample, timestep)
        output = torch.from_numpy(denoise(scaled.numpy(), float(timestep)))
        sample = scheduler.step(output, timestep, sample, return_dict=False, **extra)[0]
        outside = noisy(timesteps[i + 1 : i + 2]) if i + 1 < len(timesteps) else clean
        sample = (1 - mask) * outside + mask * sample
        samples.append(sample.numpy())
    return samples


def _ours(name: str, config: dict[str, Any], steps: int, skipped: int) -> list[np.ndarray]:
    whole = make_sampler(name, config, steps)
    sampler = make_sampler(name, config, steps, begin=skipped * whole.order)
    generator = TorchGenerator(3)
    sample = sampler.add_noise(CLEAN, PATTERN, sampler.begin)
    samples = [sample]
    last = len(sampler.timesteps) - 1
    for i in range(sampler.begin, last + 1):
        output = denoise(sampler.scale_model_input(sample, i), float(sampler.timesteps[i]))
        sample = sampler.step(output, i, sample, generator if sampler.needs_noise else None)
        outside = sampler.add_noise(CLEAN, PATTERN, i + 1) if i < last else CLEAN
        sample = (1 - MASK) * outside + MASK * sample
        samples.append(sample)
    return samples


@pytest.mark.parametrize(("name", "config", "steps"), OPTIONS)
def test_a_shortened_run_equals_diffusers(name: str, config: dict[str, Any], steps: int) -> None:
    """With the outside of a mask kept at each step's noise, as inpainting does."""
    for skipped in (0, 1, 2, steps // 2, steps - 1):
        expected, samples = (run(name, config, steps, skipped) for run in (_diffusers, _ours))
        for step, (ours, theirs) in enumerate(zip(samples, expected, strict=True)):
            assert ours.dtype == np.float32
            difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
            assert difference < TOLERANCE, f"{skipped} skipped, after step {step}: {difference:.2e}"
