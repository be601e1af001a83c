"""The settings of calibration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationSettings:
    """The settings by which int8 layers are chosen.

    ``target``: expected relative error of the denoiser's output, by the sum of what single layers cause on
    small steps; on whole sampling runs of full-size SD1.5 it came out at three quarters of that: below 3 %.
    ``free_share``: up to this share of the multiplications is never quantized: the layers with the most error
    for it. ``float_share``: at most this share is not quantized, whatever the error: int8 has to be worth it.
    ``normalized``: a convolution is normalized if that multiplies the squared error of its grids by at most
    this. ``measured_steps``: the number of steps of the sampling runs, from early to late, on which layers
    are measured; ``crop``: their largest height and width, in the tensor specs' units. ``group``: the number
    of consecutive matrix products that are first measured together.
    """

    target: float = 0.03
    free_share: float = 0.05
    float_share: float = 0.15
    normalized: float = 0.5
    measured_steps: int = 3
    crop: int = 16
    group: int = 10


DEFAULT = CalibrationSettings()
