"""Relative L2 and PSNR of equal, zero and non-finite arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controlnext.evaluation.metrics import psnr, relative_l2

ONES = np.ones((2, 3), np.float32)


def test_relative_l2_is_a_share_of_what_is_wanted() -> None:
    assert relative_l2(ONES * np.float32(1.25), ONES) == 0.25
    assert relative_l2(np.float16([3, 0]), np.float32([0, 4])) == 1.25


def test_relative_l2_of_numbers_that_float32_cannot_square() -> None:
    assert relative_l2(ONES * np.float32(2e30), ONES * np.float32(1e30)) == pytest.approx(1)


def test_relative_l2_of_nothing_and_of_what_is_not_finite() -> None:
    assert relative_l2(0 * ONES, 0 * ONES) == 0
    assert relative_l2(ONES, 0 * ONES) == math.inf
    assert math.isnan(relative_l2(ONES, ONES * np.nan))
    assert math.isnan(relative_l2(ONES * np.inf, ONES * np.inf))


def test_psnr_of_images() -> None:
    assert psnr(ONES, ONES) == 200
    assert psnr(ONES, 0 * ONES) == 0
    assert psnr(ONES, ONES * np.float32(0.9)) == pytest.approx(20, abs=1e-4)
