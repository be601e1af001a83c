"""Clips of the runtime against the PyTorch reference: whole runs of both SVD releases with every option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from controlnext.reference import VideoReference, VideoReferenceOutput, reference_pipeline
from controlnext.runtime import Pipeline, VideoOutput
from support.exports import load_tiny
from support.recipe import drawing, rand

# of the latents' norm and of the pixels' range; measured: 4.7e-6 and 9.4e-6. Noise is at first 700 times what
# is drawn, which rounding goes by.
LATENTS, PIXELS = 1.5e-5, 3e-5
# a run that ignored an option would be found: the least that one changes is 0.022
CHANGE = 1000 * LATENTS

Pair = tuple[Pipeline, VideoReference]


@pytest.fixture(scope="module", params=["svd", "svd-v1"])
def pair(request: pytest.FixtureRequest, tiny: Any, tiny_checkpoint: Callable[[str], Path]) -> Any:
    """The runtime and the reference of one release."""
    with Pipeline.load(tiny(request.param), cache=False) as pipeline:
        yield pipeline, reference_pipeline(load_tiny(request.param, tiny_checkpoint(request.param)))


@pytest.fixture(scope="module")
def usual(pair: Pair) -> VideoOutput:
    """A run with the defaults."""
    return pair[0](**_arguments())


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests share the processor, and the networks are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _photo(seed: int, width: int, height: int) -> Image.Image:
    """Noise, in which every way of resizing shows."""
    return Image.fromarray((rand(seed, height, width, 3, kind="uniform") * 255).astype(np.uint8))


def _clip(frames: int, width: int, height: int) -> list[Image.Image]:
    return [drawing(10 + number, width, height) for number in range(frames)]


def _arguments(**changes: Any) -> dict[str, Any]:
    size = {"height": 64, "width": 64, **changes}
    return {
        "image": drawing(1, 64, 64),
        "control_images": _clip(3, size["width"], size["height"]),
        "num_inference_steps": 3,
        "seed": 3,
        "height": 64,
        "width": 64,
        **changes,
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _compare(pair: Pair, **changes: Any) -> tuple[VideoOutput, VideoReferenceOutput]:
    pipeline, reference = pair
    arguments = _arguments(**changes)
    got, wanted = pipeline(**arguments, output_type="np"), reference(**arguments)
    assert got.latents.shape == wanted.latents.shape
    assert got.frames.shape == wanted.frames.shape
    assert _distance(got.latents, wanted.latents) < LATENTS
    assert np.abs(got.frames - wanted.frames).max() < PIXELS
    return got, wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"control_start": 0.3, "control_end": 0.7},
        {"control_scale": 0.4},
        {"control_scale": 0.0},
        {"min_guidance_scale": 2.0, "max_guidance_scale": 6.0},
        # guided by the unconditional half alone at first
        {"min_guidance_scale": 0.0, "max_guidance_scale": 1.0},
        # not guided
        {"min_guidance_scale": 0.0, "max_guidance_scale": 0.999},
        {"min_guidance_scale": 4.0, "max_guidance_scale": 0.5},
        {"noise_aug_strength": 0.5},
        {"seed": 2**63},
        {"latents": rand(7, 1, 3, 4, 8, 8)},
        {"frames_per_batch": 2, "overlap": 1},
    ],
    ids=" ".join,
)
def test_an_option_does_what_it_does_in_pytorch(
    pair: Pair, usual: VideoOutput, changes: dict[str, Any]
) -> None:
    """Random numbers of a seed are the reference image's noise first, then the latents."""
    got, _ = _compare(pair, **changes)
    assert _distance(got.latents, usual.latents) > CHANGE


def test_a_long_clip_of_a_size_that_is_no_multiple_of_64(pair: Pair) -> None:
    """Four windows, the last shifted back; features of odd sizes; guidance that grows over the whole clip."""
    changes = {"control_images": _clip(8, 104, 72), "height": 72, "width": 104, "seed": 8}
    got, _ = _compare(pair, **changes, frames_per_batch=4, overlap=2, max_guidance_scale=5.0)
    assert got.latents.shape == (1, 8, 4, 9, 13)
    assert got.frames.shape == (1, 8, 72, 104, 3)


def test_a_single_frame_has_the_lowest_guidance(pair: Pair) -> None:
    """It is guided or not as the highest says."""
    for lowest, highest in ((0.5, 2.0), (2.0, 0.5)):
        _compare(pair, num_frames=1, min_guidance_scale=lowest, max_guidance_scale=highest)


@pytest.mark.parametrize("pair", ["svd"], indirect=True)
def test_images_of_other_sizes_and_modes(pair: Pair) -> None:
    """Each is resized as diffusers does, after it was made RGB; the image encoder sees the image's own
    size, not the clip's."""
    frames = [_photo(number, 50, 91).convert(mode) for number, mode in enumerate(("L", "P", "1"))]
    for image in (_photo(9, 300, 181).convert("P"), _photo(8, 40, 30).convert("L")):
        got, _ = _compare(pair, image=image, control_images=frames)
        assert got.frames.shape == (1, 3, 64, 64, 3)


@pytest.mark.parametrize("pair", ["svd"], indirect=True)
def test_frames_that_are_decoded_together_see_one_another(pair: Pair, usual: VideoOutput) -> None:
    """Two at a time (one is left), all three, and those of a window where nothing is said."""
    pairs, _ = _compare(pair, decode_chunk_size=2)
    windows, _ = _compare(pair, frames_per_batch=2, overlap=1)
    np.testing.assert_array_equal(pairs.latents, usual.latents)
    np.testing.assert_array_equal(pair[0].decode(pairs.latents, "np", 2), pairs.frames)
    np.testing.assert_array_equal(pair[0].decode(windows.latents, "np", 2), windows.frames)
    for got in (pairs, windows):
        assert np.abs(pair[0].decode(got.latents, "np", 3) - got.frames).max() > 100 * PIXELS
