"""Guidance that ends within a run: which rows are computed, alone and in runs that requests share."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.runtime import Batcher, Pipeline
from controlnext.runtime.guidance import guided_steps
from support.fake_bundle import LENGTH, write_fake_bundle
from support.gate import PATIENCE, Gate, until
from support.image_calls import arguments
from support.recipe import drawing
from support.stand_in_gpu import LARGEST, SMALLEST, put_in_place, write_engine


@pytest.mark.parametrize("end", [0.0, 0.1, 0.29, 0.5, 0.57, 0.7, 0.99, 1.0])
def test_the_steps_are_those_of_a_callback_at_the_end_of_each(end: float) -> None:
    for total in range(1, 51):
        guided, rows = True, []
        for step in range(total):
            rows.append(guided)
            # what diffusers documents for ``callback_on_step_end``
            if step == int(total * end):
                guided = False
        assert guided_steps(total, end) == sum(rows)


@pytest.mark.parametrize(("end", "guided"), [(0.0, 1), (0.5, 3), (0.8, 5), (1.0, 5)])
def test_only_the_conditional_rows_are_computed_after_it(
    warm: Pipeline, gate: Gate, end: float, guided: int
) -> None:
    gate.open()
    run = arguments(num_inference_steps=5, num_images_per_prompt=2, guidance_end=end)
    warm(**run, guidance_scale=3.0)
    assert [len(rows) for rows in gate.runs] == [4] * guided + [2] * (5 - guided)
    gate.runs.clear()
    # there is nothing to end
    warm(**run, guidance_scale=1.0)
    assert [len(rows) for rows in gate.runs] == [2] * 5


def test_texts_and_control_are_not_encoded_again(warm: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, engine = Counter[str](), warm.bundle.engine("unet")
    prologue = engine._run_prologue

    def counted(feed: Any) -> Any:
        counts["prologue"] += 1
        return prologue(feed)

    monkeypatch.setattr(engine, "_run_prologue", counted)
    warm(**arguments(guidance_end=0.0))
    assert counts["prologue"] == 1


def test_a_run_that_shrinks_makes_room_for_others(warm: Pipeline, gate: Gate) -> None:
    """In runs of three rows: for one that stays guided."""
    both = [arguments(guidance_end=0.0, seed=1), arguments(seed=2, negative_prompt="blue")]
    with Batcher(warm, max_rows=3) as batcher:
        first = batcher.submit(**both[0])
        gate.wait()
        second = batcher.submit(**both[1])
        until(lambda: len(batcher._ready) == 2)
        gate.open()
        wait([first, second], PATIENCE)
    assert [len(rows) for rows in gate.runs] == [2, 3, 3, 2]
    for request, future in zip(both, (first, second), strict=True):
        np.testing.assert_allclose(future.result().latents, warm(**request).latents, atol=1e-5)


@pytest.mark.parametrize("max_rows", [1, 3, 5])
def test_each_row_has_its_own_prompt_and_control(warm: Pipeline, max_rows: int) -> None:
    """Also where the rows of one request are in several runs, before and after."""
    requests = [
        arguments(
            prompt=["a red circle", "blue"],
            negative_prompt=["green", "a"],
            control_image=[drawing(number, 24, 16), drawing(number + 1, 24, 16)],
            control_scale=[0.5, 1.0],
            num_images_per_prompt=2,
            num_inference_steps=4,
            guidance_end=end,
            seed=number,
        )
        for number, end in enumerate((0.0, 0.3, 0.6, 1.0))
    ]
    with Batcher(warm, max_rows=max_rows) as batcher:
        futures = [batcher.submit(**request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            given = future.result(PATIENCE).latents
            np.testing.assert_allclose(given, warm(**request).latents, rtol=1e-5, atol=1e-5)


def test_an_engine_for_two_rows_refuses_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row is left of a single image; of two images two are, and engines take one row by default."""
    bundle = write_fake_bundle(tmp_path / "bundle")
    sizes = {"batch": 2, "sequence": LENGTH}
    write_engine(bundle, "tensorrt", smallest=SMALLEST | sizes, largest=LARGEST | {"sequence": LENGTH})
    put_in_place(monkeypatch, bundle)
    with Pipeline.load(bundle, cache=False) as pipe:
        gate = Gate(pipe.bundle.engine("unet"), monkeypatch, open_=True)
        with pytest.raises(InputError, match="leaves 1 of 2 rows to the last steps, but the engine") as error:
            pipe(**arguments(guidance_end=0.5))
        assert error.value.argument == "guidance_end"
        assert "set `guidance_end` to 1, or build the engine again" in str(error.value)
        assert not gate.runs
        pipe(**arguments())
        pipe(**arguments(num_images_per_prompt=2, guidance_end=0.5))
        assert [len(rows) for rows in gate.runs] == [2] * 3 + [4, 4, 2]
