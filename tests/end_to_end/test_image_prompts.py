"""Image prompts: the latents of diffusers with its own IP-Adapters; at scale 0 those of a bundle without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.bundle.manifest import ParityRow
from controlnext.evaluation.metrics import relative_l2
from controlnext.evaluation.parity import measure
from controlnext.reference import reference_pipeline
from controlnext.runtime import Batcher, Pipeline
from controlnext.runtime.random import TorchGenerator
from controlnext.weights import bundle_checkpoint
from support.exports import once
from support.fake_prompts import colours
from support.gate import PATIENCE
from support.image_calls import guided_call as arguments
from support.prompted import Prompted, write_prompted
from support.recipe import drawing

pytestmark = pytest.mark.export

LIMITS = {"fp32": 2e-5, "fp16": 3e-3}
"""Limits of the relative L2 of latents."""
ROOMY = {"controls": 2, "lora_rank": 4}
"""Options of the bundle of both kinds, for two controls and with room for LoRAs."""


@pytest.fixture(scope="session")
def prompted(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Prompted]:
    def model(family: str) -> Prompted:
        make = partial(write_prompted, family, tiny_checkpoint)
        return Prompted(family, once(shared_folder / f"prompted-{family}", make))

    return model


@pytest.fixture(scope="session")
def bundle(shared_folder: Path, prompted: Callable[[str], Prompted]) -> Callable[..., Path]:
    """Return the bundle of a family with adapters of these kinds."""

    def made(family: str, *kinds: str, precision: str = "fp32", **options: Any) -> Path:
        title = "-".join(["prompted", family, *kinds, precision, *map(str, options.values())])
        return once(
            shared_folder / title,
            lambda directory: prompted(family).export(directory, kinds, precision, **options),
        )

    return made


def latents(pipe: Pipeline, **changes: Any) -> np.ndarray:
    made: np.ndarray = pipe(**arguments(**changes), output_type="latent").latents
    return made


def stock(model: Prompted, kinds: tuple[str, ...], scale: Any, controls: int = 1) -> Any:
    """Return the reference with adapters that diffusers loads from the files."""
    reference = reference_pipeline(model.checkpoint(controls=controls))
    reference.pipeline.load_ip_adapter(
        str(model.directory), "", [f"{kind}.safetensors" for kind in kinds], "image_encoder"
    )
    reference.pipeline.set_ip_adapter_scale(scale)
    return reference


CALLS: Mapping[str, dict[str, Any]] = {
    "guided": {},
    "unguided": {"guidance_scale": 1.0},
    "cached": {"cache_interval": 2, "num_inference_steps": 3},
    "other size": {"height": 80, "width": 48, "control_image": drawing(4, 48, 80)},
}


@pytest.mark.parametrize(("family", "kinds"), [("sd15", ("base",)), ("sdxl", ("plus",))])
def test_latents_equal_those_of_diffusers(
    family: str, kinds: tuple[str, ...], bundle: Any, prompted: Any
) -> None:
    reference = stock(prompted(family), kinds, 0.7)
    with Pipeline.load(bundle(family, *kinds), device="cpu", cache=False) as pipe:
        for title, changes in CALLS.items():
            image = colours(1)
            wanted = reference(**arguments(**changes), ip_adapter_image=image).latents
            found = latents(pipe, **changes, ip_adapter_image=image, ip_adapter_scale=0.7)
            assert relative_l2(found, wanted) < LIMITS["fp32"], title
            assert relative_l2(latents(pipe, **changes), wanted) > 0.01, title


def test_two_adapters_with_two_controls(bundle: Any, prompted: Any) -> None:
    """Each with a scale of its own; one of them with two images that act together."""
    kinds, scale = ("base", "plus"), [0.6, 0.4]
    images = [colours(1), [colours(2), colours(3, 20, 50)]]
    control = [drawing(4, 96, 64), drawing(5, 96, 64)]
    reference = stock(prompted("sd15"), kinds, scale, controls=2)
    wanted = reference(**arguments(control_image=control), ip_adapter_image=images).latents
    with Pipeline.load(bundle("sd15", *kinds, **ROOMY), device="cpu", cache=False) as pipe:
        found = latents(pipe, control_image=control, ip_adapter_image=images, ip_adapter_scale=scale)
        one = latents(pipe, control_image=control, ip_adapter_image=[images[0], None], ip_adapter_scale=scale)
    assert relative_l2(found, wanted) < LIMITS["fp32"]
    assert relative_l2(one, wanted) > 1e-3


def test_at_scale_0_it_is_a_bundle_without_to_the_last_bit(bundle: Any) -> None:
    with (
        Pipeline.load(bundle("sd15", "base"), device="cpu", cache=False) as pipe,
        Pipeline.load(bundle("sd15"), device="cpu", cache=False) as without,
    ):
        for title, changes in CALLS.items():
            none = latents(without, **changes)
            np.testing.assert_array_equal(latents(pipe, **changes), none, title)
            off = latents(pipe, **changes, ip_adapter_image=colours(1), ip_adapter_scale=0)
            np.testing.assert_array_equal(off, none, title)


def test_rows_have_images_and_scales_of_their_own(bundle: Any) -> None:
    """In a call of several prompts, and in a batcher's joint runs; embeddings stand for images."""
    calls = [
        arguments(ip_adapter_image=image, ip_adapter_scale=scale, seed=seed, output_type="latent")
        for seed, (image, scale) in enumerate([(colours(1), 0.7), (colours(2), 0.3), (None, 1.0)])
    ]
    with Pipeline.load(bundle("sd15", "base"), device="cpu", cache=False) as pipe, Batcher(pipe) as batcher:
        alone = [pipe(**call).latents for call in calls]
        futures = [batcher.submit(**call) for call in calls]
        for future, own in zip(futures, alone, strict=True):
            assert relative_l2(future.result(PATIENCE).latents, own) < LIMITS["fp32"]
        noise = np.concatenate([TorchGenerator(seed).randn((1, 4, 8, 12)) for seed in (0, 1)])
        both = latents(
            pipe,
            prompt=[arguments()["prompt"]] * 2,
            ip_adapter_image=[[colours(1)], [colours(2)]],
            ip_adapter_scale=[[0.7, 0.3]],
            latents=noise,
        )
    assert relative_l2(both, np.concatenate(alone[:2])) < LIMITS["fp32"]


def test_openvino(bundle: Any, prompted: Any) -> None:
    wanted = stock(prompted("sd15"), ("base",), 0.7)(**arguments(), ip_adapter_image=colours(1)).latents
    with Pipeline.load(bundle("sd15", "base"), "openvino", "cpu") as pipe:
        found = latents(pipe, ip_adapter_image=colours(1), ip_adapter_scale=0.7)
    assert relative_l2(found, wanted) < LIMITS["fp32"]


def test_with_a_lora(bundle: Any, prompted: Any) -> None:
    """Queries that a LoRA changes attend to the image too; an adapter without an image adds nothing."""
    control, lora = [drawing(4, 96, 64), drawing(5, 96, 64)], prompted("sd15").directory / "b.safetensors"
    reference = stock(prompted("sd15"), ("base",), 0.7, controls=2)
    reference.pipeline.load_lora_weights(str(lora))
    wanted = reference(**arguments(control_image=control), ip_adapter_image=colours(1)).latents
    given = {"control_image": control, "ip_adapter_image": [colours(1), None], "ip_adapter_scale": 0.7}
    with Pipeline.load(bundle("sd15", "base", "plus", **ROOMY), device="cpu", cache=False) as pipe:
        pipe.add_lora("b", lora)
        assert relative_l2(latents(pipe, lora={"b": 1.0}, **given), wanted) < LIMITS["fp32"]
        assert relative_l2(latents(pipe, **given), wanted) > 1e-3


def compared(path: Path, checkpoint: Any) -> list[ParityRow]:
    return measure(path, checkpoint, lambda _stage, _fraction: None)


def test_verify_compares_an_image_prompt(bundle: Any, prompted: Any) -> None:
    """In float16 with what the bundle itself says, and in float32 with the checkpoint."""
    small = bundle("sd15", "plus", precision="fp16")
    rows = compared(small, bundle_checkpoint(small))
    rows += compared(bundle("sd15", "base"), prompted("sd15").checkpoint(["base"]))
    assert [row.name for row in rows if "image prompt" in row.name]
    assert all(row.passed for row in rows)
