"""LoRAs that calls choose: nothing of one is left in the next, rows may have their own; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.errors import CheckpointError, InputError
from controlnext.runtime import Batcher, Pipeline
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.gate import PATIENCE
from support.image_calls import arguments
from support.recipe import drawing


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline with room for rank 6, and LoRAs of rank 2, 4 and 1; ``c`` is of the UNet alone."""
    folder = tmp_path_factory.mktemp("roomy")
    path = write_fake_bundle(folder / "bundle", lora_rank=6, shallow=True)
    with Pipeline.load(path, cache=False) as pipe:
        pipe.add_lora("a", write_fake_lora(folder / "a.safetensors", 1, 2))
        pipe.add_lora("b", write_fake_lora(folder / "b.safetensors", 2, 4))
        pipe.add_lora("c", write_fake_lora(folder / "c.safetensors", 3, 1, ("unet",)))
        yield pipe


def latents(pipe: Pipeline, **changes: Any) -> np.ndarray:
    made: np.ndarray = pipe(**arguments(**changes)).latents
    return made


def test_a_call_leaves_nothing_of_its_lora_in_the_next(roomy: Pipeline) -> None:
    without, first, other = latents(roomy), latents(roomy, lora={"a": 1.0}), latents(roomy, lora={"b": 1.0})
    assert np.abs(first - without).max() > 0.01
    assert np.abs(other - first).max() > 0.01
    np.testing.assert_array_equal(latents(roomy, lora={"a": 1.0}), first)
    np.testing.assert_array_equal(latents(roomy), without)
    np.testing.assert_array_equal(latents(roomy, lora={"a": 0.0}), without)
    np.testing.assert_array_equal(latents(roomy, lora={}), without)


def test_several_loras_and_their_scales(roomy: Pipeline) -> None:
    """Matrices of the fake graphs are added up, so that the scale of one can be told from another's."""
    both = latents(roomy, lora={"a": 0.5, "b": -1.0})
    np.testing.assert_array_equal(latents(roomy, lora={"b": -1.0, "a": 0.5}), both)
    for other in ({"a": 0.5}, {"b": -1.0}, {"a": -1.0, "b": 0.5}):
        assert np.abs(latents(roomy, lora=other) - both).max() > 0.001


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_each_prompt_may_have_its_own(roomy: Pipeline, guidance_scale: float) -> None:
    own = [{"a": 1.0}, None, {"b": 0.5, "c": 1.0}]
    noise = np.random.RandomState(0).standard_normal((3, 4, 2, 3)).astype(np.float32)
    # a sampler without noise of its own, whose numbers would depend on the batch
    common = {"guidance_scale": guidance_scale, "sampler": "ddim"}
    made = latents(roomy, prompt=["a red circle"] * 3, lora=own, latents=noise, **common)
    for number, lora in enumerate(own):
        alone = latents(roomy, lora=lora, latents=noise[number : number + 1], **common)
        np.testing.assert_allclose(made[number : number + 1], alone, rtol=1e-5, atol=1e-5)


def test_requests_of_a_batch_have_their_own(roomy: Pipeline) -> None:
    """Also where they share runs of the denoiser with shallow steps and after the end of guidance."""
    choices = [{"a": 1.0}, {"b": 0.7}, None, {"a": 1.0}, {"c": 2.0, "b": 1.0}, {"a": -0.5}]
    requests = [
        arguments(
            lora=lora,
            seed=number,
            control_image=drawing(number, 24, 16),
            num_inference_steps=4 + number % 2,
            cache_interval=1 + number % 2,
            guidance_end=1.0 if number % 3 else 0.5,
            num_images_per_prompt=1 + number % 2,
        )
        for number, lora in enumerate(choices)
    ]
    with Batcher(roomy, max_rows=8) as batcher:
        futures = [batcher.submit(**request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            alone = roomy(**request).latents
            np.testing.assert_allclose(future.result(PATIENCE).latents, alone, rtol=1e-5, atol=1e-5)


def test_equal_loras_of_a_batch_are_one_row(roomy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, shapes = roomy.bundle.engine("unet"), set()
    run = engine._run

    def counted(feed: Any, replaced: Any) -> Any:
        shapes.add((len(feed["sample"]), *feed["lora_up"].shape[:2]))
        return run(feed, replaced)

    monkeypatch.setattr(engine, "_run", counted)
    for choices, expected in (([{"a": 1.0}] * 2, (4, 1, 2)), ([{"a": 1.0}, {"b": 1.0}], (4, 4, 4))):
        shapes.clear()
        with Batcher(roomy) as batcher:
            futures = [batcher.submit(**arguments(lora=lora, num_inference_steps=40)) for lora in choices]
            for future in futures:
                future.result(PATIENCE)
        assert expected in shapes


def test_a_removed_lora_is_unknown_and_its_name_free(roomy: Pipeline, tmp_path: Path) -> None:
    file = write_fake_lora(tmp_path / "x.safetensors", 7)
    roomy.add_lora("x", file)
    first = latents(roomy, lora={"x": 1.0})
    with pytest.raises(InputError, match="there is a LoRA named x already"):
        roomy.add_lora("x", file)
    with pytest.raises(InputError, match="path is None; give the path of a LoRA's file"):
        roomy.add_lora("y", None)  # type: ignore[arg-type]
    roomy.remove_lora("x")
    assert "x" not in roomy.loras
    with pytest.raises(InputError, match="there is no LoRA named x; accepted: a, b, c"):
        latents(roomy, lora={"x": 1.0})
    with pytest.raises(InputError, match="there is no LoRA named x"):
        roomy.remove_lora("x")
    roomy.add_lora("x", write_fake_lora(tmp_path / "x.safetensors", 8))
    assert np.abs(latents(roomy, lora={"x": 1.0}) - first).max() > 0.001
    roomy.remove_lora("x")


def test_offered_loras_are_read_when_they_are_chosen(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", lora_rank=2)
    with Pipeline.load(path, cache=False) as pipe:
        pipe.offer_loras({"later": tmp_path / "later.safetensors"})
        assert pipe.loras == {}
        write_fake_lora(tmp_path / "later.safetensors", 1)
        latents(pipe, lora={"later": 1.0})
        assert pipe.loras == {"later": 2}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"a": 1.0, "b": 1.0, "c": 1.0},
            r"`lora` has a rank of 7 in all \(a 2, b 4, c 1\), but .* room for 6",
        ),
        ([{"a": 1.0}] * 2, "`lora` has 2 entries for 1 prompts; give one for all, or one for each"),
        ({"a": "strong"}, "`lora` is .*; give the scale of each LoRA by its name"),
        ({"a": float("nan")}, "`lora` is .*; give the scale"),
        ("a", "`lora` is 'a'; give the scale"),
        ([["a"]], "`lora` is .*; give the scale"),
    ],
)
def test_choices_that_do_not_fit_are_refused(roomy: Pipeline, lora: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        latents(roomy, lora=lora)
    assert error.value.argument == "lora"
    assert "\n" not in str(error.value)


def test_a_bundle_without_room_says_how_to_get_it(pipe: Pipeline, tmp_path: Path) -> None:
    file = write_fake_lora(tmp_path / "a.safetensors", 1)
    for attempt in (lambda: pipe.add_lora("a", file), lambda: latents(pipe, lora={"a": 1.0})):
        with pytest.raises(InputError, match="no room for LoRAs; export it again with `lora_rank` N"):
            attempt()


def test_a_file_of_too_large_a_rank_is_refused(roomy: Pipeline, tmp_path: Path) -> None:
    file = write_fake_lora(tmp_path / "large.safetensors", 1, 8)
    with pytest.raises(InputError, match=r"large\.safetensors has rank 8, but .* `lora_rank` 8"):
        roomy.add_lora("large", file)


def test_a_file_for_another_architecture_is_refused(roomy: Pipeline, tmp_path: Path) -> None:
    file = write_fake_lora(tmp_path / "sd3.safetensors", 1, 2, ("transformer",))
    with pytest.raises(CheckpointError, match=r"does not fit sdxl: 4 of other networks \(transformer\."):
        roomy.add_lora("sd3", file)
