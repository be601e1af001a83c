"""Noise schedules: betas, cumulative alphas, noise levels (sigmas) and timestep spacing.

Notation: `alpha_bar[t]` is the cumulative product of 1 - beta; a variance-preserving sample at t is
sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise; sigma[t] = sqrt((1 - alpha_bar) / alpha_bar) is its noise
level relative to the signal; lambda = log(alpha) - log(sigma) is half its log signal-to-noise ratio.

Tables are rounded to float32 where diffusers rounds them: 1 - alpha_bar loses half its digits at small t, so
tables made in double precision would differ from diffusers' by 1e-5 there. Timesteps and interpolations are
float64, as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.types import FloatArray

DoubleArray = NDArray[np.float64]
Options = Mapping[str, Any]

_ONE = np.float32(1)
_KARRAS_RHO = 7.0


def linspace(start: float, end: float, count: int) -> FloatArray:
    """Return `torch.linspace` in float32: counted from both ends, one rounding each (fused multiply-add)."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    values = np.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    return values.astype(np.float32)


def beta_table(options: Options) -> FloatArray:
    """Return the variance added by each training step, in [0, 1], (num_train_timesteps,) float32."""
    betas, steps = _configured_betas(options), options["num_train_timesteps"]
    if not np.all((betas >= 0) & (betas <= 1)):
        raise InputError(
            f"the scheduler configuration's betas range from {betas.min():g} to {betas.max():g}: they must "
            "lie between 0 and 1; export with other `scheduler` settings: beta_start, beta_end, trained_betas"
        )
    if len(betas) != steps:
        raise InputError(
            f"the scheduler configuration has {len(betas)} trained_betas for {steps} training timesteps: it "
            f"must have as many; export with `scheduler` num_train_timesteps={len(betas)} or "
            "`scheduler` trained_betas=null"
        )
    return betas


def _configured_betas(options: Options) -> FloatArray:
    if options["trained_betas"] is not None:
        return np.asarray(options["trained_betas"], np.float32)
    count, start, end = options["num_train_timesteps"], options["beta_start"], options["beta_end"]
    if options["beta_schedule"] == "linear":
        return linspace(start, end, count)
    if options["beta_schedule"] == "scaled_linear":
        return linspace(start**0.5, end**0.5, count) ** 2
    return _cosine_betas(count)


def _cosine_betas(count: int) -> FloatArray:
    """Return the cosine schedule (Nichol and Dhariwal, arXiv:2102.09672, equation 17), at most 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = (alpha_bar((i + 1) / count) / alpha_bar(i / count) for i in range(count))
    return np.array([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def cumulative_alphas(options: Options) -> FloatArray:
    """Return `alpha_bar`, (num_train_timesteps,) float32; the last is 0 with rescale_betas_zero_snr."""
    betas = beta_table(options)
    if options.get("rescale_betas_zero_snr"):
        betas = _zero_terminal_snr(betas)
    return _cumulative_product(_ONE - betas)


def _cumulative_product(factors: FloatArray) -> FloatArray:
    # torch multiplies on in double precision and rounds each product
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(betas: FloatArray) -> FloatArray:
    """Return betas shifted and scaled so that the last step has no signal (arXiv:2305.08891, algorithm 1)."""
    root = np.sqrt(_cumulative_product(_ONE - betas))
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return _ONE - alphas


def sigma_table(options: Options) -> FloatArray:
    """Return the noise level of each training timestep, (num_train_timesteps,) float32, ascending."""
    alpha_bar = cumulative_alphas(options)
    sigmas = np.sqrt((_ONE - alpha_bar) / alpha_bar)
    if options.get("rescale_betas_zero_snr"):
        # diffusers keeps the highest level finite by an alpha_bar of 2**-24. The root of 2**24 - 1 lies
        # halfway between two float32 numbers; torch rounds to this one.
        sigmas[-1] = 4096
    return sigmas


def spaced_timesteps(options: Options, steps: int, points: int, top: int | None = None) -> DoubleArray:
    """Return the training timesteps to visit, highest first (arXiv:2305.08891, table 2).

    Args:
        options: the scheduler's options.
        steps: number of steps asked for.
        points: grid points for linspace and leading: `steps`, or `steps + 1` for the classes that skip
            the lowest.
        top: number of training timesteps that may be used, if fewer than num_train_timesteps.

    Returns:
        (steps,) float64; integers except for linspace. With trailing there is one more than requested,
        -1, if steps * (num_train_timesteps / steps) rounds down: diffusers runs that step too.
    """
    train = options["num_train_timesteps"]
    top = train if top is None else top
    # the classes without the option have this spacing
    if options.get("timestep_spacing", "linspace") == "linspace":
        return np.linspace(0, top - 1, points)[::-1][:steps]
    if options["timestep_spacing"] == "leading":
        return (np.arange(points) * float(top // points))[::-1][:steps] + options["steps_offset"]
    return np.arange(top, 0, -train / steps).round() - 1


def interpolated_sigmas(timesteps: DoubleArray, table: FloatArray) -> DoubleArray:
    """Return noise levels at (possibly fractional) timesteps; beyond the table its end values."""
    return np.interp(timesteps, np.arange(len(table)), table)


def replacement_sigmas(options: Options, highest: float, lowest: float, steps: int) -> DoubleArray | None:
    """Return Karras or exponential noise levels, if the options request them.

    Args:
        options: the scheduler's options; its sigma_max and sigma_min override `highest` and `lowest`.
        highest, lowest: ends of the schedule that is replaced.
        steps: number of levels.

    Returns:
        (steps,) float64, descending (Karras: arXiv:2206.00364, equation 5, rho 7), or None.
    """
    karras, exponential = options["use_karras_sigmas"], options["use_exponential_sigmas"]
    if karras and exponential:
        raise InputError(
            "the scheduler configuration has use_karras_sigmas and use_exponential_sigmas on: turn one off, "
            "export with `scheduler` use_exponential_sigmas=false or `scheduler` use_karras_sigmas=false"
        )
    highest = highest if options["sigma_max"] is None else options["sigma_max"]
    lowest = lowest if options["sigma_min"] is None else options["sigma_min"]
    if (karras or exponential) and (lowest <= 0 or not math.isfinite(highest)):
        raise InputError(
            f"use_karras_sigmas and use_exponential_sigmas need positive, finite noise levels, not "
            f"{highest:g} to {lowest:g}: export with `scheduler` sigma_min=VALUE,sigma_max=VALUE, or with "
            "other betas"
        )
    if karras:
        high, low = highest ** (1 / _KARRAS_RHO), lowest ** (1 / _KARRAS_RHO)
        return (high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO
    if exponential:
        return np.exp(np.linspace(math.log(highest), math.log(lowest), steps))
    return None


def timesteps_of(sigmas: DoubleArray, table: FloatArray) -> DoubleArray:
    """Return fractional timesteps of noise levels, linear in log(sigma), within the table; float64."""
    log_table = np.log(table)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    below = np.clip(np.searchsorted(log_table, log_sigmas, side="right") - 1, 0, len(table) - 2)
    low, high = log_table[below], log_table[below + 1]
    share = np.clip((low - log_sigmas) / (low - high), 0, 1)
    return (1 - share) * below + share * (below + 1)


def variance_preserving(sigmas: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (alpha, sigma) of variance-preserving samples, alpha**2 + sigma**2 = 1, at levels `sigmas`."""
    alphas = _ONE / np.sqrt(sigmas**2 + _ONE)
    return alphas, sigmas * alphas


def log_snr(alphas: FloatArray, sigmas: FloatArray) -> FloatArray:
    """Return lambda = log(alpha) - log(sigma), float32; infinite where sigma is 0."""
    return rounded_log(alphas) - rounded_log(sigmas)


def rounded_log(values: FloatArray) -> FloatArray:
    """Return the float32 logarithm, computed in double precision: nearer to torch's than NumPy's own."""
    return np.log(values.astype(np.float64)).astype(np.float32)
