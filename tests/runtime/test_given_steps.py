"""Timesteps and noise levels as arguments of a call: alone, as a stream and in a batcher; refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.runtime import Batcher, Pipeline
from support.image_calls import arguments

TIMESTEPS = [999, 500, 20]


def given(**changes: Any) -> dict[str, Any]:
    return arguments(**{"num_inference_steps": None, "sampler": "euler", **changes})


@pytest.mark.parametrize("how", [{"timesteps": TIMESTEPS}, {"sigmas": (14.6, 3.0, 0.5, 0.0)}])
def test_the_steps_are_those_that_are_given(pipe: Pipeline, how: dict[str, Any]) -> None:
    steps = list(pipe.stream(**given(**how)))
    assert len(steps) == 3
    if "timesteps" in how:
        assert [step.timestep for step in steps] == TIMESTEPS
    wanted = pipe(**given(**how)).latents
    np.testing.assert_array_equal(steps[-1].latents, wanted)
    arrays = {name: np.array(values) for name, values in how.items()}
    np.testing.assert_array_equal(pipe(**given(**arrays)).latents, wanted)
    with Batcher(pipe) as batcher:
        np.testing.assert_allclose(batcher.submit(**given(**how)).result(60).latents, wanted, atol=1e-5)
    assert np.abs(pipe(**given(num_inference_steps=3)).latents - wanted).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": TIMESTEPS, "sigmas": [1, 0]}, "`timesteps` and `sigmas` were given; give one"),
        (
            {"timesteps": TIMESTEPS, "num_inference_steps": 3},
            "`num_inference_steps` and `timesteps` were given",
        ),
        ({"timesteps": [1, 2]}, "timesteps has 2 out of order"),
        ({"timesteps": "999,1"}, "timesteps is '999,1'; give a list of integers"),
        ({"timesteps": TIMESTEPS, "sampler": None}, "which sampler 'unipc' does not take; use `sampler` eu"),
        ({"sigmas": [1, 0], "sampler": "lcm"}, "sigmas was given, which sampler 'lcm' does not take"),
        ({"timesteps": [1000]}, "timesteps begins at 1000; this scheduler configuration has .* 0 to 999"),
    ],
)
def test_refusals_are_one_line(pipe: Pipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.stream(**given(**changes))
    assert "\n" not in str(caught.value)
    assert caught.value.argument in changes
