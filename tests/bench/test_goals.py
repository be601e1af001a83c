"""Results of a benchmark are compared with the goals that they are of."""

from __future__ import annotations

from pathlib import Path

import goals
import msgspec
import pytest
from goals import FEW_STEPS, FULL_RUN, GOALS, LESS, Asked, ratios

from controlnext.bench.results import Measurement
from support.bench_results import SIZE, made_up, measured

STEPS = measured("engine fp32", "step", 1.0), measured("torch eager float32", "step", 2.0)


def _image(target: str, seconds: float, asked: Asked) -> Measurement:
    return measured(target, "image", seconds, work=msgspec.structs.replace(SIZE, **asked))


def test_goals_are_only_of_what_was_measured() -> None:
    (ratio,) = ratios(made_up(*STEPS, measured("engine int8", "step", 0.5)))
    assert (ratio.value, ratio.goal.at_most, ratio.passed) == (0.5, 0.40, False)
    assert not ratios(made_up(*STEPS, family="sdxl"))


def test_a_ratio_is_taken_in_each_round() -> None:
    """The machine is twice as slow in the second round, and slow for only one target in the third."""
    engine = measured("engine fp32", "step", 0.3, 0.6, 0.5)
    (ratio,) = ratios(made_up(engine, measured("torch eager float32", "step", 1.0, 2.0, 1.0)))
    assert (ratio.low, ratio.value, ratio.high, ratio.passed) == (0.3, 0.3, 0.5, True)


def test_goals_hold_for_their_models_and_sizes() -> None:
    firsts = measured("engine fp32", "first", 1.0), measured("torch eager float32", "first", 10.0)
    image = measured("engine fp32", "image", 4.0)
    made = [made_up(*firsts, image, family="sdxl", size=size) for size in (1, 10**10)]
    names = [[ratio.goal.name for ratio in ratios(results)] for results in made]
    assert [len(some) for some in names] == [2, 1]
    assert names[1] == ["runtime work outside engines against a step, engine fp32"]
    assert len({goal.name for goal in GOALS}) == len(GOALS)


def test_the_fastest_of_several_targets_counts() -> None:
    """Engines of other graphs do not count, and a goal for processors with AMX is one of those alone."""
    steps = [
        measured("engine fp32", "step", 2.0),
        measured("engine int8", "step", 1.0),
        measured("engine int8 without control", "step", 0.1),
        measured("torch eager bfloat16", "step", 2.0),
    ]
    found = {ratio.goal.name: ratio for ratio in ratios(made_up(*steps, instructions=["amx_bf16"]))}
    ratio = found["sd15 step, fastest engine against torch eager bfloat16, with AMX"]
    assert (ratio.names, ratio.value) == (("engine int8", "torch eager bfloat16"), 0.5)
    assert ratio.goal.name not in {ratio.goal.name for ratio in ratios(made_up(*steps))}


def test_images_are_compared_by_what_was_asked_for() -> None:
    """Images that multiply less stand beside plain ones of 20 steps, and few steps beside few."""
    found = [
        _image("engine int8", 10.0, FULL_RUN),
        _image("engine int8, cache 3", 5.0, {**FULL_RUN, "cache_interval": 3}),
        _image("engine int8, cache 3, guidance to 0.7, tiny decoder", 3.0, LESS),
        _image("engine int8, 4 LCM steps, tiny decoder", 1.0, FEW_STEPS),
        _image("torch eager float32", 20.0, FULL_RUN),
        _image("torch eager float32, 4 LCM steps, tiny decoder", 2.0, FEW_STEPS),
        _image("diffusers ControlNet float32", 40.0, FULL_RUN),
        _image("stable-diffusion.cpp q8_0", 100.0, FULL_RUN),
    ]
    values = {
        ratio.goal.at_most: ratio.value for ratio in ratios(made_up(*found)) if "image," in ratio.goal.name
    }
    assert values == {0.55: 0.5, 0.25: 0.15, 0.60: 0.5, 0.10: 0.025, 0.50: 0.1}


def test_goals_are_read_from_a_runs_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = made_up(*STEPS, instructions=["avx2"])
    (tmp_path / "bench.json").write_bytes(msgspec.json.encode(results))
    goals.main([str(tmp_path / "bench.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "(avx2" in lines[0]
    assert lines[-1] == (
        "| sd15 step, fp32 engine against torch eager float32 | engine fp32 / torch eager float32 | 0.500"
        " | 0.500 to 0.500 | 0.4 | MISSED |"
    )
