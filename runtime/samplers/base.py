"""The base class of samplers: a schedule of timesteps and one step of denoising."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from controlnext.errors import InputError
from controlnext.families.options import read_options
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers.schedule import DoubleArray, Options, spaced_timesteps
from controlnext.runtime.samplers.steps import Steps, check_given
from controlnext.types import FloatArray


class Sampler(ABC):
    """A diffusers scheduler, set up for the steps of one run.

    `timesteps` and `init_noise_sigma` do not change. A sampler with history (unipc, dpmpp_2m) serves one run:
    its steps are taken once each and in order. The others have no state between steps: `step` may be called
    several times with the same index, for instance once per window of a long clip. No sampler changes its
    input arrays. One with history keeps them, so do not write into them afterwards.

    A step runs the denoiser once. A sampler of second order (heun) has about two of them for each that is
    asked for, as diffusers' scheduler has timesteps.

    A run starts at index `begin`, as in diffusers' pipelines with `set_begin_index`: 0, or a later one if it
    starts from an image, to which :meth:`add_noise` adds the noise of that step.

    Attributes:
        timesteps: float32 (steps,), the denoiser's timestep at each step. They are integers if those of
            diffusers' scheduler are. There are more steps than requested if diffusers takes more.
        init_noise_sigma: the factor of unit-variance noise before the first step.
    """

    name: ClassVar[str]
    limits_steps: ClassVar[bool] = False
    """Whether diffusers refuses more steps than training timesteps."""
    has_history: ClassVar[bool] = False
    """Whether a step depends on earlier ones."""
    order: ClassVar[int] = 1
    """How often a step that is asked for runs the denoiser, but for the last one."""
    further_sigmas: ClassVar[int] = 0
    """How many `sigmas` a call gives beyond those of the steps."""

    timesteps: FloatArray
    init_noise_sigma: float = 1.0

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        self.options: Options = read_options(self.name, SAMPLER_SPECS[self.name].options, config)
        self.asked = asked
        self.num_inference_steps = self._counted()
        self.begin = self._taken = asked.begin
        self._noise_scales: dict[int, np.float32] = {}
        """The factor of the noise, which may be 0, for each step that draws noise."""

    @property
    def needs_noise(self) -> bool:
        """Whether any step draws from the generator."""
        return bool(self._noise_scales)

    @property
    def counted_steps(self) -> int:
        """The number of steps of a whole run as diffusers' pipelines count them when they shorten it."""
        given = self.asked.argument != "num_inference_steps"
        return len(self.timesteps) if given else self.num_inference_steps

    def _counted(self) -> int:
        """Return the number of steps that were asked for, after checks that need no schedule."""
        if self.asked.argument == "num_inference_steps":
            return self._checked_steps(self.asked.count)
        check_given(self.name, self.options, self.asked)
        if self.asked.timesteps is not None:
            return len(self.asked.timesteps)
        assert self.asked.sigmas is not None
        count = len(self.asked.sigmas) - self.further_sigmas
        if count < 1:
            raise InputError(
                f"sigmas has {len(self.asked.sigmas)} values; sampler '{self.name}' takes those of the steps"
                " and the one after the last, often 0; give at least 2",
                argument="sigmas",
            )
        return count

    def _spaced(self, points: int, top: int | None = None) -> DoubleArray:
        """Return the given timesteps, else :func:`spaced_timesteps`."""
        if self.asked.timesteps is not None:
            return self.asked.timesteps
        return spaced_timesteps(self.options, self.num_inference_steps, points, top)

    def _checked_steps(self, steps: Any) -> int:
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
            raise InputError(
                f"num_inference_steps is {steps!r}; it must be a positive integer",
                argument="num_inference_steps",
            )
        most = self.options["num_train_timesteps"]
        if self.limits_steps and steps > most:
            raise InputError(
                f"num_inference_steps is {steps}; sampler '{self.name}' supports 1 to {most} steps with this "
                "scheduler configuration (its num_train_timesteps); reduce `num_inference_steps`",
                argument="num_inference_steps",
            )
        return int(steps)

    def scale_model_input(self, sample: FloatArray, i: int) -> FloatArray:  # noqa: ARG002
        """Return the denoiser's input for `sample` at step `i`, float32 of the same shape."""
        return sample

    @abstractmethod
    def add_noise(self, sample: FloatArray, noise: FloatArray, i: int) -> FloatArray:
        """Return a clean `sample` with as much unit-variance `noise` as there is before step `i`."""

    def step(
        self, model_output: FloatArray, i: int, sample: FloatArray, generator: TorchGenerator | None = None
    ) -> FloatArray:
        """Take one step of denoising.

        Args:
            model_output: the denoiser's (guided) output at step `i`, float32, of the sample's shape (batch
                first).
            i: step index, 0 .. len(timesteps) - 1.
            sample: the current noisy sample, unscaled, float32.
            generator: the source of noise, required if `needs_noise`. Numbers are drawn at the same steps
                and in the same shape as in diffusers.

        Returns:
            The sample of the next step, a new float32 array.

        Raises:
            InputError: index out of range or out of order, shapes that differ, or a generator that is
                missing.
        """
        if not 0 <= i < len(self.timesteps):
            raise InputError(
                f"step index {i} is out of range; this run has steps 0 to {len(self.timesteps) - 1}"
            )
        if model_output.shape != sample.shape:
            raise InputError(
                f"the denoiser's output has shape {model_output.shape}, the sample {sample.shape}; "
                "they must agree"
            )
        if self.has_history:
            self._follow(i)
        noise_scale = self._noise_scales.get(i)
        if noise_scale is None:
            return self._step(model_output, i, sample)
        if generator is None:
            raise InputError(f"sampler '{self.name}' draws noise at step {i}; give it a generator")
        return self._step(model_output, i, sample) + generator.randn(sample.shape) * noise_scale

    def _follow(self, i: int) -> None:
        if i != self._taken:
            raise InputError(
                f"sampler '{self.name}' has a history and is at step {self._taken}, not {i}; take its "
                "steps once each and in order, and make a new sampler for every run"
            )
        self._taken += 1

    @abstractmethod
    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Take one step without the noise."""

    def _thresholded(self, x0: FloatArray) -> FloatArray:
        """Apply dynamic thresholding (arXiv:2205.11487, section 2.3) to `x0` if the options request it.

        Each batch entry is clipped to a quantile of its magnitudes, at least 1 and at most sample_max_value,
        and divided by it.
        """
        if not self.options["thresholding"]:
            return x0
        rows = x0.reshape(x0.shape[0], -1)
        limits = np.quantile(np.abs(rows), self.options["dynamic_thresholding_ratio"], axis=1, keepdims=True)
        limits = np.minimum(np.maximum(limits, 1), self.options["sample_max_value"]).astype(np.float32)
        return (np.clip(rows, -limits, limits) / limits).reshape(x0.shape)

    def _require_finite(self, *coefficients: ArrayLike) -> None:
        """Raise for coefficients that are not finite; diffusers would return NaN with them."""
        if not all(np.all(np.isfinite(values)) for values in coefficients):
            raise InputError(
                f"sampler '{self.name}' cannot run this scheduler configuration at "
                f"{self.num_inference_steps} steps: its noise schedule repeats a level or divides by zero "
                f"(diffusers gives NaN); change `{self.asked.argument}`, or export with other `scheduler` "
                "settings: final_sigmas_type, timestep_spacing or rescale_betas_zero_snr",
                argument=self.asked.argument,
            )
