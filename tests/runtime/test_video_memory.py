"""Clips of any length in little memory: what is read when, and how much of it is kept."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.runtime import Pipeline
from support.idle_clips import Feed, idle_pipeline, no_noise
from support.recipe import drawing, rand

SIZE, WINDOW, OVERLAP = 64, 14, 4
FRAME_BYTES = 3 * SIZE * SIZE * 4
"""Of a control image as the denoiser is fed it."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return idle_pipeline(tmp_path_factory.mktemp("idle") / "bundle", no_noise)


class _Watched:
    """A control clip of ``frames`` images, each made anew when it is read.

    ``reads`` counts them by number; ``most`` is how many were in memory at once.
    """

    def __init__(self, frames: int) -> None:
        self.frames, self.most, self.reads = frames, 0, Counter[int]()
        self._alive: list[weakref.ref[np.ndarray]] = []

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, number: int) -> np.ndarray:
        self.reads[number] += 1
        image = np.full((SIZE, SIZE, 3), number % 256, np.uint8)
        self._alive = [reference for reference in self._alive if reference() is not None]
        self._alive.append(weakref.ref(image))
        self.most = max(self.most, len(self._alive))
        return image


@contextmanager
def _traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Gives a function that says how much more memory than at first is in use, and was at most."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tuple(size - before for size in tracemalloc.get_traced_memory())  # type: ignore[return-value]
    finally:
        tracemalloc.stop()


def _run(pipe: Pipeline, clip: _Watched, **changes: Any) -> np.ndarray:
    arguments = {"frames_per_batch": WINDOW, "overlap": OVERLAP, "num_inference_steps": 2, **changes}
    return pipe(drawing(1, SIZE, SIZE), clip, output_type="latent", **arguments).latents


def test_of_a_long_clip_every_frame_is_read_once_a_step(pipe: Pipeline) -> None:
    """Although windows overlap; one image at a time is in memory, and the first one also sets the size."""
    clip = _Watched(200)
    _run(pipe, clip, num_inference_steps=3)
    assert clip.most <= 2
    assert clip.reads.pop(0) == 2
    assert clip.reads == Counter(dict.fromkeys(range(1, 200), 3))


def test_of_a_short_clip_every_frame_is_read_once(pipe: Pipeline) -> None:
    """Two windows, whatever the number of steps; frames that are not asked for are left alone."""
    clip = _Watched(100)
    _run(pipe, clip, num_inference_steps=3, num_frames=20)
    assert clip.reads.pop(0) == 2
    assert clip.reads == Counter(range(1, 20))


def test_denoising_needs_memory_for_windows_not_for_the_clip(pipe: Pipeline) -> None:
    """Only latents grow with the clip: those of a frame are a fiftieth of its control image.

    Measured: 3.6 windows' control images at 50 frames, and with every frame 4 times its latents.
    """
    peaks = {}
    for frames in (50, 200, 400):
        with _traced() as memory:
            latents = _run(pipe, _Watched(frames))
            peaks[frames] = memory()[1]
        assert latents.shape[1] == frames
        assert peaks[frames] < 4 * WINDOW * FRAME_BYTES + 6 * latents.nbytes
    assert peaks[400] < 2 * peaks[50]


def test_control_images_go_with_the_run(pipe: Pipeline) -> None:
    """At once: they do not wait for the garbage collector."""
    _run(pipe, _Watched(30))
    gc.disable()
    try:
        with _traced() as memory:
            latents = _run(pipe, _Watched(30))
            assert memory()[0] < latents.nbytes + FRAME_BYTES
    finally:
        gc.enable()


def test_images_of_a_long_clip_come_chunk_by_chunk(tmp_path: Path) -> None:
    decoded = []

    def answer(folder: str, feed: Feed, shape: tuple[int, ...]) -> np.ndarray:
        decoded.append(shape[0])
        return no_noise(folder, feed, shape)

    pipe, alive, most = idle_pipeline(tmp_path / "bundle", answer), [], 0
    for number, image in enumerate(pipe.images(rand(0, 1, 30, 4, 8, 8), 7)):
        assert sum(decoded) == min(30, 7 * (number // 7 + 1))
        assert image.size == (SIZE, SIZE)
        alive.append(weakref.ref(image))
        most = max(most, sum(reference() is not None for reference in alive))
    assert decoded == [7, 7, 7, 7, 2]
    assert most <= 8


def test_decoding_needs_memory_for_a_chunk_not_for_the_clip(pipe: Pipeline) -> None:
    peaks = []
    for frames in (50, 400):
        latents = rand(0, 1, frames, 4, 8, 8)
        with _traced() as memory:
            assert sum(1 for _ in pipe.images(latents, WINDOW)) == frames
            peaks.append(memory()[1])
    assert peaks[1] < 1.05 * peaks[0]
