"""Precisions: strings to users and manifests, with facts."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from controlnext.types import COMPUTES, Precision


@pytest.mark.parametrize("precision", Precision)
def test_a_precision_is_its_name(precision: Precision) -> None:
    """As users and manifests give it, read and written."""
    assert f"{precision}" == precision.value == precision
    assert msgspec.json.decode(msgspec.json.encode(precision), type=Precision) is precision
    assert json.loads(json.dumps({precision: precision})) == {precision.value: precision.value}


def test_what_is_not_calibrated_is_floating_point() -> None:
    """So that it can be what a calibrated precision leaves everything else in."""
    assert all(np.issubdtype(precision.weights, np.floating) for precision in COMPUTES)
    assert {*COMPUTES} < {*Precision}
