"""What calibration aims at, and how much it looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationSettings:
    """How int8 layers are chosen.

    ``target``: expected relative error of the denoiser's output, by the sum of what single layers cause on
    small steps; on whole sampling runs of full-size SD1.5 it came out at three quarters of that: below 3 %.
    ``free_share``: up to this share of the multiplications stays as it is in any case: those that err most
    for it. ``float_share``: at most this share stays as it is, whatever the error: int8 has to be worth it.
    ``normalized``: a convolution is normalized where that makes the squared error of its grids at most this
    many times what it was. ``measured_steps``: so many steps of the sampling runs, from early to late, are
    what layers are measured on; ``crop``: their largest height and width, in the tensor specs' units.
    ``group``: so many matrix products in a row are measured together first.
    """

    target: float = 0.03
    free_share: float = 0.05
    float_share: float = 0.15
    normalized: float = 0.5
    measured_steps: int = 3
    crop: int = 16
    group: int = 10


DEFAULT = CalibrationSettings()
