"""Generators and callbacks of a call, as diffusers has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controlnext.errors import InputError
from controlnext.runtime import Batcher, ImagePipeline, Pipeline, VideoPipeline
from support.fake_bundle import write_fake_bundle
from support.idle_clips import idle_pipeline, no_noise
from support.image_calls import arguments
from support.recipe import drawing


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImagePipeline]:
    bundle = write_fake_bundle(tmp_path_factory.mktemp("step_end") / "toy")
    with ImagePipeline.load(bundle, device="cpu", threads=1, cache=False) as loaded:
        yield loaded


def test_a_torch_generator_is_the_seed(pipe: ImagePipeline) -> None:
    """Also of a sampler that adds noise at each step; the generator goes on from call to call."""
    generator = torch.Generator().manual_seed(5)
    first, second = (pipe(**arguments(generator=generator)).latents for _ in range(2))
    np.testing.assert_allclose(first, pipe(**arguments(seed=5)).latents, atol=1e-5)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_numpy_generators(pipe: ImagePipeline, make: Any) -> None:
    """The latents are their next numbers; equal seeds give equal images."""
    first, again = (pipe(**arguments(generator=make(3))).latents for _ in range(2))
    np.testing.assert_array_equal(first, again)
    source = make(3)
    shape = (1, 4, 2, 3)
    numbers = (
        source.standard_normal(shape, np.float32)
        if isinstance(source, np.random.Generator)
        else source.standard_normal(shape).astype(np.float32)
    )
    plain = arguments(sampler="euler", latents=numbers)
    np.testing.assert_array_equal(
        pipe(**arguments(sampler="euler", generator=make(3))).latents, pipe(**plain).latents
    )


def test_a_generator_for_each_image(pipe: ImagePipeline) -> None:
    """Each image is the one of its generator alone."""
    both = pipe(**arguments(generator=[np.random.default_rng(n) for n in (1, 2)], num_images_per_prompt=2))
    for row, number in enumerate((1, 2)):
        alone = pipe(**arguments(generator=np.random.default_rng(number))).latents
        np.testing.assert_allclose(both.latents[row : row + 1], alone, atol=1e-6)
    with pytest.raises(InputError, match="generator has 2 entries for 3 images"):
        pipe(**arguments(generator=[np.random.default_rng(1)] * 2, num_images_per_prompt=3))


def test_a_callback_is_told_of_each_step(pipe: ImagePipeline) -> None:
    seen: list[Any] = []

    def told(own: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((own, step, timestep, tensors["latents"]))
        return tensors

    last = pipe(**arguments(callback_on_step_end=told)).latents
    steps = list(pipe.stream(**arguments()))
    assert [(one[0], *one[1:3]) for one in seen] == [(pipe, s.index, s.timestep) for s in steps]
    for one, step in zip(seen, steps, strict=True):
        np.testing.assert_array_equal(one[3], step.latents)
    np.testing.assert_array_equal(last, steps[-1].latents)


@pytest.mark.parametrize("batched", [False, True])
def test_latents_that_it_returns_are_taken(pipe: ImagePipeline, batched: bool) -> None:
    def zeros(_pipe: Any, step: int, _timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": 0 * tensors["latents"]} if step == 2 else {}

    given = arguments(callback_on_step_end=zeros)
    if batched:
        with Batcher(pipe) as batcher:
            found = batcher.submit(**given).result()
    else:
        found = pipe(**given)
    assert not found.latents.any()


def test_without_tensors_and_an_error(pipe: ImagePipeline) -> None:
    def stop(_pipe: Any, _step: int, _timestep: float, tensors: dict[str, Any]) -> None:
        assert tensors == {}
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pipe(**arguments(callback_on_step_end=stop, callback_on_step_end_tensor_inputs=[]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"generator": 3}, "generator is 3; give a numpy.random.Generator"),
        ({"generator": []}, "generator is"),
        ({"callback_on_step_end": 3}, "give a function"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "only 'latents' can be had"),
        ({"callback_on_step_end": lambda *_: {"latents": np.zeros(3)}}, r"shape \(3,\)"),
        ({"callback_on_step_end": lambda *_: 1}, "returned 1; it must return tensors by name, or None"),
        (
            {"callback_on_step_end": lambda *given: {"latents": given[3]["latents"] * np.nan}},
            "returned latents with NaN or infinity",
        ),
    ],
)
def test_what_is_refused(pipe: ImagePipeline, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pipe(**arguments(**given))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    made = idle_pipeline(tmp_path_factory.mktemp("clips") / "bundle", no_noise)
    assert isinstance(made, VideoPipeline)
    return made


def _clip(**changes: Any) -> dict[str, Any]:
    control = [drawing(number, 24, 16) for number in range(3)]
    given = {"image": drawing(1, 24, 16), "control_images": control, "num_inference_steps": 2}
    return given | {"output_type": "latent"} | changes


def test_a_clip_takes_generators(clips: VideoPipeline) -> None:
    """A torch generator is the seed; NumPy's are others, equal for equal seeds."""
    made = clips(**_clip(generator=torch.Generator().manual_seed(5))).latents
    np.testing.assert_allclose(made, clips(**_clip(seed=5)).latents, atol=1e-3, rtol=1e-5)
    first, again = (clips(**_clip(generator=np.random.default_rng(3))).latents for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, made)
    with pytest.raises(InputError, match="generator has 2 entries for 1 images"):
        clips(**_clip(generator=[np.random.default_rng(1)] * 2))


def test_the_callback_of_a_clip(clips: VideoPipeline) -> None:
    """It is told of each step, and the run goes on with the latents that it returns."""
    seen: list[Any] = []

    def told(own: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((own, step, timestep, tensors["latents"].shape))
        return {"latents": 0 * tensors["latents"]} if step == 1 else {}

    assert not clips(**_clip(callback_on_step_end=told)).latents.any()
    steps = list(clips.stream(**_clip()))
    assert seen == [(clips, step.index, step.timestep, step.latents.shape) for step in steps]
    with pytest.raises(InputError, match="only 'latents' can be had"):
        clips(**_clip(callback_on_step_end_tensor_inputs=["image_embeds"]))


def test_a_dtype_is_told_what_takes_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torch_dtype is torch\.float16, but a bundle has its own"):
        Pipeline.load(tmp_path, torch_dtype=torch.float16)
