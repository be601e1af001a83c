"""Several controls in one bundle equal PyTorch with several; one of them changes nothing for the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError
from controlnext.evaluation.parity import measure
from controlnext.export import export_bundle
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.weights import Checkpoint, NetworkWeights, bundle_checkpoint
from support.recipe import drawing, fill, rand
from support.start_images import mask, photo
from support.two_controls import (
    DOWN,
    V2,
    denoiser_only,
    difference,
    graph_feed,
    run_graph,
    run_stock,
    two_controls,
)

pytestmark = pytest.mark.export

HEIGHT, WIDTH = 64, 96
ROUNDING = 1e-5
"""Relative L2 that sums in another order cost a graph; a run's steps and its guidance multiply it."""


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    control = tiny_checkpoint("sd15") / "control.safetensors"
    return two_controls("sd15", tmp_path_factory.mktemp("controls"), control)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two controls: the tiny SD1.5's own, and another."""
    folder = tmp_path_factory.mktemp("several") / "bundle"
    export_bundle(checkpoint, "fp32", folder)
    return folder


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, cache=False) as pipeline:
        yield pipeline


def arguments(count: int = 1, **changes: Any) -> dict[str, Any]:
    """A short guided run of ``count`` prompts, for the runtime and for the reference."""
    given = {
        "prompt_embeds": rand(1, count, 77, 48),
        "negative_prompt_embeds": rand(2, count, 77, 48),
        "latents": rand(3, count, 4, HEIGHT // 8, WIDTH // 8),
        "control_image": [drawing(4, WIDTH, HEIGHT), drawing(5, WIDTH, HEIGHT)],
        "control_scale": [0.7, 0.4],
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "height": HEIGHT,
        "width": WIDTH,
    }
    return {**given, **changes}


def test_each_control_has_its_own_image_and_scale(bundle: Path) -> None:
    inputs = {tensor.name: tensor.shape for tensor in read_manifest(bundle).graphs["unet"].inputs}
    assert list(inputs)[-4:] == ["control_image", "control_scale", "control_image_2", "control_scale_2"]
    assert inputs["control_image"] == ["control_batch", 3, "8*height", "8*width"]
    assert inputs["control_image_2"] == ["control_batch_2", 3, "8*height", "8*width"]
    assert inputs["control_scale"] == inputs["control_scale_2"] == ["batch"]


@pytest.mark.parametrize("images", [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_the_graph_equals_the_stock_unet_with_both_controls_added(
    bundle: Path, checkpoint: Checkpoint, images: tuple[int, int]
) -> None:
    """Each with one image or one for every row of the batch, whatever the other has."""
    unet, controls = stock_modules(checkpoint)
    feed = graph_feed(bundle, 4, images, height=10, width=6, sequence=9)
    both = run_stock(unet, controls, feed, DOWN)
    assert difference(run_graph(bundle, feed), both) < ROUNDING
    # the measure sees either of them
    for name in ("control_scale", "control_scale_2"):
        without = run_stock(unet, controls, {**feed, name: np.zeros_like(feed[name])}, DOWN)
        assert difference(without, both) > 0.01


def stock_modules(checkpoint: Checkpoint) -> tuple[nn.Module, list[nn.Module]]:
    return checkpoint.networks["unet"].module(), [one.module() for one in checkpoint.controls]


def test_an_image_for_some_of_the_rows_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"control_image_2 has batch 2; give 1 or the batch .* 4"):
        run_graph(bundle, graph_feed(bundle, 4, (1, 2), height=10, width=6, sequence=9))


def test_controls_in_the_other_order_give_the_same(bundle: Path) -> None:
    """But for the rounding of the sum: both controls' weights exchanged in the graph, and their inputs."""
    model = onnx.load(bundle / "unet" / "model.onnx")
    other = {"control": "control_2", "control_2": "control"}
    for tensor in model.graph.initializer:
        module, _, name = tensor.name.partition(".")
        tensor.name = f"{other.get(module, module)}.{name}" if name else tensor.name
    feed = graph_feed(bundle, 2, (1, 2), height=6, width=8, sequence=5)
    swapped = {**feed}
    for name in ("control_image", "control_scale"):
        swapped |= {name: feed[f"{name}_2"], f"{name}_2": feed[name]}
    (turned,) = ort.InferenceSession(model.SerializeToString()).run(["noise_pred"], swapped)
    wanted = run_graph(bundle, feed)
    assert difference(turned, wanted) < ROUNDING
    assert difference(run_graph(bundle, swapped), wanted) > 0.01


def test_a_run_equals_pytorchs(pipe: Pipeline, checkpoint: Checkpoint) -> None:
    got, wanted = pipe(**arguments(), output_type="np"), reference_pipeline(checkpoint)(**arguments())
    assert difference(got.latents, wanted.latents) < 10 * ROUNDING
    assert np.abs(got.images - wanted.images).max() < 1e-3
    images = arguments()["control_image"][::-1]
    other = pipe(**arguments(control_image=images), output_type="np")
    assert np.abs(other.images - wanted.images).max() > 0.05


def test_a_run_from_an_image_equals_pytorchs(pipe: Pipeline, checkpoint: Checkpoint) -> None:
    """With a mask and a crop around it, which both control images get too, and at a larger size."""
    start = {"image": photo(7, 101, 67), "latents": None}
    reference = reference_pipeline(checkpoint)
    for changes in (
        {**start, "guidance_scale": 1.0},
        {**start, "mask_image": mask(101, 67), "padding_mask_crop": 8},
        {"upscale": 1.5, "strength": 0.4},
    ):
        got, wanted = pipe(**arguments(**changes)), reference(**arguments(**changes))
        assert difference(got.latents, wanted.latents) < 10 * ROUNDING
        other = pipe(**arguments(**{**changes, "control_scale": [0.7, 0.0]}))
        assert difference(other.latents, wanted.latents) > 0.001


def test_images_and_scales_for_every_prompt(pipe: Pipeline, checkpoint: Checkpoint) -> None:
    """A list for one control, a single image for the other; two results of every prompt."""
    several = arguments(
        2,
        control_image=[[drawing(4, WIDTH, HEIGHT), drawing(6, WIDTH, HEIGHT)], drawing(5, WIDTH, HEIGHT)],
        control_scale=[0.7, [0.4, 0.9]],
        num_images_per_prompt=2,
        latents=rand(3, 4, 4, HEIGHT // 8, WIDTH // 8),
    )
    got, wanted = pipe(**several, output_type="latent"), reference_pipeline(checkpoint)(**several)
    assert difference(got.latents, wanted.latents) < 10 * ROUNDING
    for prompt, (number, scale) in enumerate([(4, 0.4), (6, 0.9)]):
        rows = slice(2 * prompt, 2 * prompt + 2)
        alone = arguments(
            control_image=[drawing(number, WIDTH, HEIGHT), drawing(5, WIDTH, HEIGHT)],
            control_scale=[0.7, scale],
            num_images_per_prompt=2,
            latents=several["latents"][rows],
            prompt_embeds=several["prompt_embeds"][prompt : prompt + 1],
            negative_prompt_embeds=several["negative_prompt_embeds"][prompt : prompt + 1],
        )
        assert difference(pipe(**alone, output_type="latent").latents, got.latents[rows]) < 10 * ROUNDING


def test_each_keeps_its_image_and_scale_after_the_end_of_guidance(
    pipe: Pipeline, checkpoint: Checkpoint
) -> None:
    """Of two images of a prompt; the control ends later."""
    cut = arguments(
        num_images_per_prompt=2,
        latents=rand(3, 2, 4, HEIGHT // 8, WIDTH // 8),
        guidance_end=0.0,
        control_end=0.7,
    )
    got, wanted = pipe(**cut, output_type="latent"), reference_pipeline(checkpoint)(**cut)
    assert difference(got.latents, wanted.latents) < 10 * ROUNDING


def test_the_second_at_scale_zero_leaves_what_the_first_gives_alone(pipe: Pipeline, tiny: Any) -> None:
    """Bit for bit: x + 0 c is x."""
    with Pipeline.load(tiny("sd15"), cache=False) as single:
        first = {"control_image": drawing(4, WIDTH, HEIGHT), "control_scale": 0.7}
        alone = single(**arguments(**first), output_type="np")
    beside = pipe(**arguments(control_scale=[0.7, 0]), output_type="np")
    np.testing.assert_array_equal(beside.latents, alone.latents)
    np.testing.assert_array_equal(beside.images, alone.images)


def test_a_single_scale_serves_both(pipe: Pipeline) -> None:
    one, two = (pipe(**arguments(control_scale=s), output_type="latent").latents for s in (0.6, [0.6, 0.6]))
    np.testing.assert_array_equal(one, two)


IMAGE = drawing(4, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_image": IMAGE}, "has 2 controls; control_image must be a list of 2 entries"),
        ({"control_image": [IMAGE]}, "has 2 controls; control_image must be a list of 2 entries"),
        ({"control_image": [IMAGE] * 3}, "has 2 controls; control_image must be a list of 2 entries"),
        ({"control_image": None}, "has 2 controls; control_image must be a list of 2 entries"),
        ({"control_image": [IMAGE, None]}, "no control image was given"),
        (
            {"control_image": [IMAGE, [IMAGE] * 3]},
            "3 control images were given for one prompt",
        ),
        ({"control_scale": [0.7]}, "has 2 controls; control_scale must be a list of 2 entries"),
        ({"control_scale": [0.7, 0.4, 1.0]}, "has 2 controls; control_scale must be a list of 2 entries"),
        ({"control_scale": [0.7, [0.4, 1.0]]}, "control_scale has shape .* for 1 prompts; give one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_number_of_images_or_scales_is_refused(
    pipe: Pipeline, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        pipe(**arguments(**changes))
    assert "\n" not in str(refused.value)


def test_the_bundle_gives_back_both_controls(bundle: Path, checkpoint: Checkpoint) -> None:
    """And equals PyTorch with them by the measure that exports are held to."""
    found = bundle_checkpoint(bundle)
    assert len(found.controls) == 2
    for got, wanted in zip(found.controls, checkpoint.controls, strict=True):
        assert got.tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(tensor, wanted.tensors[name]) for name, tensor in got.tensors.items())
    assert [s.role for s in read_manifest(bundle).sources if "control" in s.role] == ["control", "control 2"]
    rows = measure(bundle, found, lambda _stage, _fraction: None)
    assert len(rows) == 7
    assert rows[-2].name.endswith("cache interval 2")
    assert all(row.passed for row in rows), rows


def test_a_clips_graph_with_two_controls(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """SVD: scales of rows spread over their frames; images of one clip or of every row's."""
    control = tiny_checkpoint("svd") / "control.safetensors"
    checkpoint = denoiser_only(two_controls("svd", tmp_path, control))
    unet = fill(diffusers.UNetSpatioTemporalConditionModel(**SMALL_SVD), 3)
    spec = checkpoint.family.networks["unet"]
    weights = NetworkWeights(spec, dict(unet.config), unet.state_dict())
    checkpoint = replace(checkpoint, networks={**checkpoint.networks, "unet": weights})
    export_bundle(checkpoint, "fp32", tmp_path / "bundle")
    controls = stock_modules(checkpoint)[1]
    for images in ((1, 2), (2, 1)):
        feed = graph_feed(tmp_path / "bundle", 2, images, frames=3, height=8, width=6, sequence=1)
        wanted = run_stock(unet, controls, feed, V2)
        assert difference(run_graph(tmp_path / "bundle", feed), wanted) < ROUNDING
        feed["control_scale_2"][:] = 0
        assert difference(run_stock(unet, controls, feed, V2), wanted) > 0.001


SMALL_SVD = {
    "sample_size": 8,
    "down_block_types": ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",),
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "num_attention_heads": (2,),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 3,
}
