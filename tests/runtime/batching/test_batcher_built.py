"""The batcher on a built engine, on a stand-in for the GPU: its limits, and its CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.errors import EngineError
from controlnext.runtime import Batcher, Pipeline
from support.fake_bundle import LENGTH, write_fake_bundle
from support.gate import PATIENCE, Gate, until
from support.image_calls import HEIGHT, WIDTH, arguments
from support.stand_in_gpu import LARGEST, SMALLEST, Machine, put_in_place, write_engine

TALL = {"height": 2 * HEIGHT, "width": WIDTH}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_fake_bundle(tmp_path_factory.mktemp("built") / "bundle")
    sequence = {"sequence": LENGTH}
    write_engine(path, "tensorrt", smallest=SMALLEST | sequence, largest=LARGEST | sequence)
    return path


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return put_in_place(monkeypatch, bundle)


@pytest.fixture
def pipe(bundle: Path, machine: Machine) -> Iterator[Pipeline]:  # noqa: ARG001
    with Pipeline.load(bundle, cache=False) as opened:
        assert opened.bundle.engine("unet").backend.startswith("tensorrt")
        yield opened


def _together(batcher: Batcher, gate: Gate, requests: list[dict[str, Any]]) -> list[Future[Any]]:
    """Submit requests that take all of their steps together, but for the first step of the first one."""
    futures = [batcher.submit(**requests[0])]
    gate.wait()
    futures += [batcher.submit(**request) for request in requests[1:]]
    until(lambda: len(batcher._ready) == len(requests))
    gate.open()
    return futures


def test_one_of_a_size_that_the_engine_was_not_built_for_fails_alone(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others share runs of as many rows as the engine takes."""
    gate = Gate(pipe.bundle.engine("unet"), monkeypatch)
    good = [arguments(seed=seed) for seed in range(3)]
    with Batcher(pipe, max_rows=16) as batcher:
        *futures, wide = _together(batcher, gate, [*good, arguments(width=64, height=HEIGHT)])
        error = wide.exception(PATIENCE)
        given = [future.result(PATIENCE).latents for future in futures]
    assert isinstance(error, EngineError)
    assert "sample has shape (2, 4, 2, 8), but the engine was built for" in str(error)
    assert max(len(rows) for rows in gate.runs) == 4
    for latents, request in zip(given, good, strict=True):
        np.testing.assert_allclose(latents, pipe(**request).latents, atol=1e-5)


def test_more_rows_than_the_engine_takes_run_in_turns(
    pipe: Pipeline, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batcher and without."""
    request = arguments(num_images_per_prompt=3)
    with Pipeline.load(bundle, "onnxruntime", cache=False) as other:
        wanted = other(**request).latents
    gate = Gate(pipe.bundle.engine("unet"), monkeypatch, open_=True)
    with Batcher(pipe) as batcher:
        given = batcher.submit(**request).result(PATIENCE).latents
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    np.testing.assert_array_equal(pipe(**request).latents, given)
    assert [len(rows) for rows in gate.runs] == [4, 2] * 6


def test_sizes_that_take_turns_are_replayed(
    pipe: Pipeline, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [arguments(num_inference_steps=8, **TALL), arguments(num_inference_steps=8, seed=2)]
    gate = Gate(pipe.bundle.engine("unet"), monkeypatch)
    with Batcher(pipe) as batcher:
        given = [one.result(PATIENCE).latents for one in _together(batcher, gate, requests)]
    assert len(gate.runs) == 16
    # each is run once and recorded once
    assert (machine.cuda.counts["record"], machine.cuda.counts["replay"]) == (2, 14)
    for latents, request in zip(given, requests, strict=True):
        np.testing.assert_allclose(latents, pipe(**request).latents, atol=1e-5)
