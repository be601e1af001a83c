"""Runs that start from an image, and second runs, in a batcher: results as alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.runtime import Batcher, Pipeline
from support.fake_bundle import write_fake_bundle
from support.gate import PATIENCE
from support.image_calls import arguments
from support.recipe import drawing
from support.start_images import mask, photo

START = {"image": photo(1, 24, 16)}
CALLS: list[dict[str, Any]] = [
    {},
    START,
    {**START, "strength": 0.5, "cache_interval": 2, "num_inference_steps": 8},
    {**START, "mask_image": mask(24, 16), "guidance_end": 0.4, "guidance_scale": 1.0},
    {**START, "mask_image": mask(24, 16), "padding_mask_crop": 2, "output_type": "pil"},
    {"upscale": 2, "num_images_per_prompt": 2},
    {"upscale": 2, "upscale_mode": "latent", "sampler": "heun"},
    {**START, "upscale": 1.5},
]


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("starts") / "bundle", encoder=True, shallow=True)
    with Pipeline.load(path, cache=False) as pipe:
        yield pipe


def test_every_request_gives_what_its_call_alone_gives(encoding: Any) -> None:
    """With the steps of both runs told as those of one."""
    steps: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(CALLS))}

    def watch(number: int) -> Any:
        return lambda step: steps[number].append((step.index, step.total))

    requests = [arguments(**{"seed": number, **call}) for number, call in enumerate(CALLS)]
    with Batcher(encoding) as batcher:
        futures = [
            batcher.submit(**request, on_step=watch(number)) for number, request in enumerate(requests)
        ]
        results = [future.result(PATIENCE) for future in futures]
    for number, (request, result) in enumerate(zip(requests, results, strict=True)):
        alone = encoding(**request)
        np.testing.assert_allclose(result.latents, alone.latents, rtol=1e-5, atol=1e-5)
        if request["output_type"] == "pil":
            assert result.images[0].tobytes() == alone.images[0].tobytes()
        streamed = [(step.index, step.total) for step in encoding.stream(**request)]
        assert steps[number] == streamed
        assert [index for index, _ in streamed] == list(range(streamed[0][1]))


def test_a_second_run_that_fails_fails_its_request_alone(
    encoding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise InputError("no second run")

    monkeypatch.setattr(type(encoding), "_second", fail)
    with Batcher(encoding) as batcher:
        wrong = batcher.submit(**arguments(upscale=2))
        right = batcher.submit(**arguments(seed=1))
        with pytest.raises(InputError, match="no second run"):
            wrong.result(PATIENCE)
        assert right.result(PATIENCE).latents.shape == (1, 4, 2, 3)


def test_a_request_may_be_cancelled_between_its_runs(encoding: Any) -> None:
    with Batcher(encoding) as batcher:
        call = arguments(upscale=2, control_image=drawing(1, 24, 16), num_inference_steps=4)
        future: Any = None
        seen: list[int] = []

        def stop(step: Any) -> None:
            seen.append(step.index)
            if step.index == 3:
                future.cancel()

        future = batcher.submit(**call, on_step=stop)
    assert future.cancelled()
    assert seen == [0, 1, 2, 3]
