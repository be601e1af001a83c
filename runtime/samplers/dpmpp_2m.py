"""DPM-Solver++ (multistep, data prediction) of arXiv:2211.01095."""

from __future__ import annotations

from controlnext.runtime.samplers.dpm_solver import DPMMultistepSampler


class DPMPP2MSampler(DPMMultistepSampler):
    """A sampler equal to diffusers' `DPMSolverMultistepScheduler` with algorithm_type dpmsolver++."""

    name = "dpmpp_2m"
