"""Every precision has limits of parity."""

from __future__ import annotations

from controlnext.evaluation.parity import LIMITS
from controlnext.types import Precision


def test_every_precision_has_its_limits() -> None:
    assert {*LIMITS} == {*Precision}
