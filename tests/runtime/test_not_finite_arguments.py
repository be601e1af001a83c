"""NaN and infinity in any argument that takes numbers: an error that names the argument, before a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle
from support.fake_clips import write_fake_clips
from support.image_calls import embeds
from support.recipe import drawing, rand


def holed(*shape: int) -> Callable[[float], np.ndarray]:
    """Return a function of a value that puts it into one place of an array."""

    def array(value: float) -> np.ndarray:
        made = np.abs(rand(0, *shape)) % 1
        made.flat[-1] = value
        return made

    return array


NUMBERS: dict[str, Callable[[float], Any]] = {
    name: lambda value: value
    for name in ("control_scale", "control_start", "control_end", "guidance_end", "num_inference_steps")
} | {name: lambda value: value for name in ("height", "width", "seed", "cache_interval")}
IMAGES: dict[str, Callable[[float], Any]] = {
    **NUMBERS,
    "guidance_scale": lambda value: value,
    "num_images_per_prompt": lambda value: value,
    "sigmas": lambda value: [value, 1.0],
    "timesteps": lambda value: [value, 1],
    "latents": holed(1, 4, 2, 3),
    "control_image": holed(16, 24, 3),
    "image": holed(16, 24, 3),
    "mask_image": holed(16, 24),
    "strength": lambda value: value,
    "upscale": lambda value: value,
    "lora": lambda value: {"style": value},
    **{name: holed(*array.shape) for name, array in embeds().items()},
}
CLIPS: dict[str, Callable[[float], Any]] = {
    **NUMBERS,
    "sigmas": lambda value: [value, 1.0],
    "latents": holed(1, 2, 4, 2, 3),
    "image": holed(16, 24, 3),
    "control_images": holed(2, 16, 24, 3),
    "num_frames": lambda value: value,
    "frames_per_batch": lambda value: value,
    "overlap": lambda value: value,
    "min_guidance_scale": lambda value: value,
    "max_guidance_scale": lambda value: value,
    "noise_aug_strength": lambda value: value,
    "decode_chunk_size": lambda value: value,
}
VALUES = [float("nan"), float("inf"), -float("inf"), 1e400]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    bundle = write_fake_bundle(tmp_path_factory.mktemp("bundle"), encoder=True, lora_rank=2)
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Pipeline.load(write_fake_clips(tmp_path_factory.mktemp("clips")), device="cpu", cache=False) as pipe:
        yield pipe


def refused(pipe: Any, name: str, call: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        list(pipe.stream(**call))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.argument == name


@pytest.mark.parametrize("name", IMAGES)
def test_in_a_call_for_images(name: str, images: Any) -> None:
    for value in VALUES:
        call = {"control_image": drawing(1, 24, 16), **embeds(), "num_inference_steps": 2}
        if name == "mask_image":
            call["image"] = drawing(2, 24, 16)
        if name in ("sigmas", "timesteps"):
            call |= {"num_inference_steps": None, "sampler": "euler"}
        refused(images, name, {**call, name: IMAGES[name](value)})


@pytest.mark.parametrize("name", CLIPS)
def test_in_a_call_for_a_clip(name: str, clips: Any) -> None:
    for value in VALUES:
        frames = [drawing(number, 24, 16) for number in range(2)]
        call = {"image": drawing(1, 24, 16), "control_images": frames, "num_inference_steps": 2}
        if name == "sigmas":
            del call["num_inference_steps"]
        refused(clips, name, {**call, name: CLIPS[name](value)})
