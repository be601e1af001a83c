"""SDE-DPM-Solver++ (multistep, data prediction) of arXiv:2211.01095, section 5."""

from __future__ import annotations

from controlnext.runtime.samplers.dpm_solver import DPMMultistepSampler


class DPMPP2MSDESampler(DPMMultistepSampler):
    """A sampler equal to diffusers' `DPMSolverMultistepScheduler` with algorithm_type sde-dpmsolver++.

    It draws noise at every step, also at the last one, where it is multiplied by 0.
    """

    name = "dpmpp_2m_sde"
    stochastic = True
