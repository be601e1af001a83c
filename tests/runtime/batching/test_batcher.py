"""The batcher: results are those of calls alone; who runs with whom, and in which order."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.runtime import Batcher, Pipeline
from controlnext.runtime.batching import Observer, Phase
from support.gate import PATIENCE, Gate, until
from support.idle_clips import idle_pipeline
from support.image_calls import arguments, embeds
from support.recipe import drawing


def _random_request(number: int, pipe: Pipeline) -> dict[str, Any]:
    chance = random.Random(number)
    height, width = chance.choice([(16, 24), (32, 16)])
    count = chance.choice([1, 1, 2])
    text = {"prompt": chance.sample(["a red circle", "blue", "a green square"], count)}
    embedded = {"prompt": None, **embeds(count, number)}
    return {
        **arguments(seed=number, num_inference_steps=chance.randint(1, 12)),
        **(embedded if chance.random() < 0.3 else text),
        "sampler": chance.choice(pipe.family.samplers),
        "control_image": [drawing(number + i, width, height) for i in range(chance.choice([1, count]))],
        "control_scale": chance.uniform(0, 1.5),
        "control_start": chance.choice([0.0, 0.3]),
        "guidance_scale": chance.choice([1.0, 3.0, 7.5]),
        "guidance_end": chance.choice([1.0, 0.6, 0.2]),
        "cache_interval": chance.choice([1, 1, 2, 3]),
        "num_images_per_prompt": chance.choice([1, 3]),
        "output_type": chance.choice(["np", "latent"]),
    }


@pytest.mark.parametrize("max_rows", [1, 5, 8])
def test_every_request_gives_what_its_call_alone_gives(warm: Pipeline, max_rows: int) -> None:
    """Whatever runs beside it; rows of one run are computed apart, so only the rounding may differ."""
    requests = [_random_request(number, warm) for number in range(40)]
    with Batcher(warm, max_rows=max_rows) as batcher:
        futures = [batcher.submit(**request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            alone, batched = warm(**request), future.result(PATIENCE)
            np.testing.assert_allclose(batched.latents, alone.latents, rtol=1e-5, atol=1e-5)
            if request["output_type"] == "np":
                np.testing.assert_allclose(batched.images, alone.images, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_trained_model_gives_what_its_calls_alone_give(
    precision: str, shapes_bundle: Path, shapes_bundle_fp16: Path
) -> None:
    """Within 1e-5 in float32 and 2e-3 in float16 (0 was measured: ONNX Runtime computes rows apart)."""
    limit = {"fp32": 1e-5, "fp16": 2e-3}[precision]
    with Pipeline.load({"fp32": shapes_bundle, "fp16": shapes_bundle_fp16}[precision], device="cpu") as pipe:
        requests = [
            {
                **_random_request(number, pipe),
                "control_image": drawing(number, 64, 64),
                "prompt": "a red circle on blue",
                "prompt_embeds": None,
                "negative_prompt_embeds": None,
                "pooled_prompt_embeds": None,
                "negative_pooled_prompt_embeds": None,
                "output_type": "latent",
            }
            for number in range(8)
        ]
        with Batcher(pipe) as batcher:
            futures = [batcher.submit(**request) for request in requests]
            for request, future in zip(requests, futures, strict=True):
                wanted, given = pipe(**request).latents, future.result(60).latents
                assert np.linalg.norm(given - wanted) <= limit * np.linalg.norm(wanted)


def test_a_run_holds_as_many_rows_as_it_may(
    warm: Pipeline, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one request with more rows go into several runs; what was built for fewer is respected."""
    gate.open()
    with Batcher(warm, max_rows=4) as batcher:
        batcher.submit(**arguments(num_images_per_prompt=3, guidance_scale=3.0)).result(PATIENCE)
    assert [len(run) for run in gate.runs] == [4, 2] * 3
    gate.runs.clear()
    monkeypatch.setattr(warm.bundle.engine("unet"), "most_rows", 3)
    with Batcher(warm, max_rows=4) as batcher:
        batcher.submit(**arguments(num_images_per_prompt=2, guidance_scale=3.0)).result(PATIENCE)
    assert [len(run) for run in gate.runs] == [3, 1] * 3


def test_requests_share_runs_at_steps_of_their_own(warm: Pipeline, gate: Gate) -> None:
    with Batcher(warm, max_rows=8) as batcher:
        first = batcher.submit(**arguments(num_inference_steps=3, guidance_scale=3.0))
        gate.wait()
        second = batcher.submit(**arguments(num_inference_steps=2, guidance_scale=1.0, sampler="ddim"))
        until(lambda: len(batcher._ready) == 2)
        gate.open()
        wait([first, second], PATIENCE)
    high, middle, low = gate.runs
    assert [len(run) for run in gate.runs] == [2, 3, 3]
    assert high[0] > middle[0] > low[0]
    assert middle[2] != middle[0]
    assert middle[2] > low[2]


def test_a_short_request_behind_a_long_one_is_answered_after_its_own_steps(
    warm: Pipeline, gate: Gate
) -> None:
    with Batcher(warm) as batcher:
        long = batcher.submit(**arguments(num_inference_steps=50))
        gate.wait()
        gate.let(3)
        short = batcher.submit(**arguments(num_inference_steps=4))
        until(lambda: len(batcher._ready) == 2)
        before = len(gate.runs)
        gate.let(5)
        short.result(PATIENCE)
        assert len(gate.runs) - before <= 4 + 2
        assert not long.done()
        long.cancel()
        gate.open()


def test_groups_that_share_nothing_take_turns(warm: Pipeline, gate: Gate) -> None:
    """Between two steps of a request every other size takes one step."""
    sizes = [(16, 24), (32, 16), (16, 16)]
    with Batcher(warm) as batcher:
        futures = [batcher.submit(**arguments(control_image=drawing(1, 24, 16), num_inference_steps=12))]
        gate.wait()
        for height, width in sizes[1:] * 2:
            control = drawing(1, width, height)
            futures.append(batcher.submit(**arguments(control_image=control, num_inference_steps=6)))
        until(lambda: len(batcher._ready) == 5)
        gate.open()
        wait(futures, PATIENCE)
    turns = [(8 * height, 8 * width) for height, width in gate.sizes]
    assert turns == sizes[:1] + 6 * sizes + 5 * sizes[:1]


def test_text_and_control_are_encoded_once_a_request(warm: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counter[str]()
    for graph_name in ("unet", "text_encoder", "vae_decoder"):
        engine = warm.bundle.engine(graph_name)
        kind = "_run_prologue" if graph_name == "unet" else "_run"
        _count(engine, kind, graph_name, counts, monkeypatch)
    requests = [arguments(num_inference_steps=n, output_type="np", seed=n) for n in (2, 5, 9)]
    with Batcher(warm) as batcher:
        wait([batcher.submit(**request, guidance_scale=1.0) for request in requests], PATIENCE)
    assert counts == {"unet": 3, "text_encoder": 3, "vae_decoder": 3}


def test_an_observer_hears_of_runs_and_phases(warm: Pipeline) -> None:
    class Counting(Observer):
        def __init__(self) -> None:
            self.rows: list[tuple[int, int]] = []
            self.phases = Counter[Phase]()

        def ran(self, requests: int, rows: int, seconds: float) -> None:
            assert seconds > 0
            self.rows.append((requests, rows))

        def spent(self, phase: Phase, seconds: float) -> None:
            assert seconds >= 0
            self.phases[phase] += 1

    observer = Counting()
    with Batcher(warm, observer=observer) as batcher:
        batcher.submit(**arguments(guidance_scale=3.0)).result(PATIENCE)
    assert observer.rows == [(1, 2)] * 3
    assert observer.phases == dict.fromkeys(Phase, 1)


def test_clips_share_runs_and_give_what_they_give_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one window and of several, whose control is read for each run."""

    def answer(graph_name: str, feed: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        if graph_name != "unet":
            return np.full((), 0.1, np.float32)
        rows = [feed[name].reshape(len(feed[name]), -1).mean(1) for name in ("control_image", "timestep")]
        control = np.broadcast_to(rows[0], shape[:1]) * feed["control_scale"]
        return feed["sample"][:, :, :4] * 0.1 + (control + rows[1] / 1000).reshape(-1, 1, 1, 1, 1)

    pipe = idle_pipeline(tmp_path / "bundle", answer)
    requests = [
        {
            "image": drawing(9, 64, 64),
            "control_images": [drawing(number + i, 64, 64) for i in range(frames)],
            "num_inference_steps": 2 + number,
            "frames_per_batch": 3,
            "overlap": 1,
            "max_guidance_scale": guidance,
            "seed": number,
            "output_type": "latent",
        }
        for number, (frames, guidance) in enumerate([(3, 3.0), (5, 3.0), (3, 0.5), (7, 2.0)])
    ]
    gate = Gate(pipe.bundle.engine("unet"), monkeypatch)
    with Batcher(pipe) as batcher:
        futures = [batcher.submit(**request) for request in requests]
        gate.wait()
        until(lambda: len(batcher._ready) == len(requests))
        gate.open()
        for request, future in zip(requests, futures, strict=True):
            np.testing.assert_allclose(
                future.result(PATIENCE).latents, pipe(**request).latents, rtol=1e-5, atol=1e-5
            )
    assert max(len(run) for run in gate.runs) > 2


def _count(engine: Any, method: str, name: str, counts: Counter[str], patch: pytest.MonkeyPatch) -> None:
    function = getattr(engine, method)

    def counted(*given: Any) -> Any:
        counts.update([name])
        return function(*given)

    patch.setattr(engine, method, counted)
