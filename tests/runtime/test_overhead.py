"""The overhead of the runtime in a denoising step, counted in work: seconds depend on the machine."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.manifest import Graph, Manifest, TensorEntry
from controlnext.engines import Engine
from controlnext.families import get_family
from controlnext.runtime import ImagePipeline, Request
from controlnext.runtime.denoise import Step
from controlnext.types import Feed
from support.recipe import rand

STEPS = 20
LATENTS = 4 * 128 * 128 * 4
"""Bytes of the latents of an image."""


class _Idle(Engine):
    """A denoiser that checks its inputs and does nothing."""

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        return {"noise_pred": feed["sample"] * np.float32(0.1)}

    def _close(self) -> None:
        pass


class _Bundle:
    """A bundle of a full-size SDXL without text encoders whose engine is idle."""

    def __init__(self, folder: Path) -> None:
        self.family = get_family("sdxl")
        (spec,) = (graph.of({}) for graph in self.family.graphs if graph.name == "unet")
        sizes = {"cross_attention_dim": 2048, "pooled": 1280, "ids": 6}
        sides = [
            [TensorEntry.of(tensor.resolve(sizes)) for tensor in side] for side in (spec.inputs, spec.outputs)
        ]
        graphs = {"unet": Graph("unet", "fp16", *sides)}
        self.manifest = Manifest(1, "sdxl", "sdxl", "fp16", graphs, {"unet": {}}, {}, [], {}, {})
        self.idle = _Idle(self.manifest, "unet")
        self._scheduler = folder / "scheduler_config.json"
        self._scheduler.write_text('{"beta_schedule": "scaled_linear"}')

    def engine(self, _folder: str) -> Engine:
        return self.idle

    def file(self, _name: str) -> Path:
        return self._scheduler


def _steps(folder: Path, sampler: str) -> Iterator[Step]:
    """Guided steps at 1024 x 1024, all but the engine; the first two, which prepare things, are done."""
    arguments = {
        "prompt_embeds": rand(0, 1, 77, 2048),
        "negative_prompt_embeds": rand(1, 1, 77, 2048),
        "pooled_prompt_embeds": rand(2, 1, 1280),
        "negative_pooled_prompt_embeds": rand(3, 1, 1280),
        "control_image": np.zeros((1024, 1024, 3), np.uint8),
    }
    request = Request(**arguments, sampler=sampler, num_inference_steps=STEPS)
    steps = iter(ImagePipeline(_Bundle(folder)).steps(request))  # type: ignore[arg-type]
    next(steps), next(steps)
    return steps


@pytest.mark.parametrize("sampler", get_family("sdxl").samplers)
def test_a_step_is_few_calls(sampler: str, tmp_path: Path) -> None:
    """Of functions, Python's and C's: 227 to 260 measured, the most where noise is drawn."""
    calls = Counter[str]()
    steps = _steps(tmp_path, sampler)
    sys.setprofile(lambda _frame, event, _function: calls.update([event]))
    try:
        taken = list(steps)
    finally:
        sys.setprofile(None)
    assert len(taken) == taken[-1].total - 2
    assert (calls["call"] + calls["c_call"]) / len(taken) < 275


@pytest.mark.parametrize("sampler", get_family("sdxl").samplers)
def test_a_step_makes_few_arrays(sampler: str, tmp_path: Path) -> None:
    """8 to 11 times the latents' size measured; the control image, 48 times that, is not made anew."""
    steps = _steps(tmp_path, sampler)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in steps:
            pass
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 16 * LATENTS
