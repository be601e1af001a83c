"""LoRAs at run time: the latents of diffusers with peft's adapters, text encoders too; nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from controlnext.bundle.format import MODEL
from controlnext.bundle.manifest import LayerScales, Quantization
from controlnext.evaluation.metrics import relative_l2
from controlnext.reference import reference_pipeline
from controlnext.runtime import Batcher, Pipeline
from support.exports import once
from support.gate import PATIENCE
from support.image_calls import guided_call as arguments
from support.recipe import drawing
from support.roomy import Roomy, write_roomy
from support.start_images import mask, photo

pytestmark = pytest.mark.export

FAMILIES = ("sd15", "sdxl", "sd3")
CHOICES: Mapping[str, dict[str, float]] = {
    "one": {"a": 0.7},
    "other": {"b": -0.5},
    "both": {"a": 0.4, "b": 0.3},
}
CALLS: Mapping[str, dict[str, Any]] = {
    "unguided": {"guidance_scale": 1.0},
    "other size": {"height": 80, "width": 48, "control_image": drawing(4, 48, 80)},
}
"""Further calls, with both."""
START: Mapping[str, Any] = {"image": photo(7, 101, 67), "mask_image": mask(101, 67), "strength": 0.6}
LIMITS = {"fp32": 1e-5, "fp16": 2e-3}
"""Limits of the relative L2 of latents."""


@pytest.fixture(scope="session")
def roomy(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Roomy]:
    def model(family: str) -> Roomy:
        make = partial(write_roomy, family, tiny_checkpoint)
        return Roomy(family, once(shared_folder / f"roomy-{family}", make))

    return model


@pytest.fixture(scope="session")
def bundle(shared_folder: Path, roomy: Callable[[str], Roomy]) -> Callable[..., Path]:
    """Return the bundle of a family in a precision."""

    def made(family: str, precision: str = "fp32") -> Path:
        return once(
            shared_folder / f"roomy-{family}-{precision}",
            lambda directory: roomy(family).export(directory, precision),
        )

    return made


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(
    request: pytest.FixtureRequest, bundle: Callable[..., Path], roomy: Callable[[str], Roomy]
) -> Iterator[Pipeline]:
    with loaded(bundle(request.param), roomy(request.param)) as pipeline:
        yield pipeline


def loaded(path: Path, model: Roomy) -> Pipeline:
    pipe = Pipeline.load(path, device="cpu", cache=False)
    for name in ("a", "b"):
        pipe.add_lora(name, model.directory / f"{name}.safetensors")
    return pipe


def latents(pipe: Pipeline, lora: Any = None, **changes: Any) -> np.ndarray:
    made: np.ndarray = pipe(**arguments(**changes), lora=lora, output_type="latent").latents
    return made


@pytest.fixture(scope="session")
def expected(roomy: Callable[[str], Roomy]) -> Callable[[str], dict[str, np.ndarray]]:
    """Return the latents of diffusers for each choice, and with the step cache, of a family."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def of(family: str) -> dict[str, np.ndarray]:
        if family not in found:
            found[family] = stock(roomy(family))
        return found[family]

    return of


def stock(model: Roomy) -> dict[str, np.ndarray]:
    reference = reference_pipeline(model.checkpoint())
    stock = reference.pipeline
    for name in ("a", "b"):
        stock.load_lora_weights(str(model.directory / f"{name}.safetensors"), adapter_name=name)
    made = {}
    for title, scales in CHOICES.items():
        stock.set_adapters(list(scales), list(scales.values()))
        made[title] = reference(**arguments()).latents
    for title, changes in CALLS.items():
        made[title] = reference(**arguments(**changes)).latents
    made["cached"] = reference(**arguments(cache_interval=2)).latents
    made["started"] = reference(**arguments(**START)).latents
    stock.disable_lora()
    made["none"] = reference(**arguments()).latents
    return made


def test_latents_equal_those_of_diffusers(pipe: Pipeline, expected: Any) -> None:
    wanted = expected(pipe.family.name)
    for title, lora in CHOICES.items():
        assert relative_l2(latents(pipe, lora), wanted[title]) < LIMITS["fp32"], title
        assert relative_l2(wanted[title], wanted["none"]) > 0.01, title
    assert relative_l2(latents(pipe), wanted["none"]) < LIMITS["fp32"]
    for title, changes in CALLS.items():
        assert relative_l2(latents(pipe, CHOICES["both"], **changes), wanted[title]) < LIMITS["fp32"], title


def test_shallow_steps_have_the_lora_too(pipe: Pipeline, expected: Any) -> None:
    wanted = expected(pipe.family.name)
    found = latents(pipe, CHOICES["both"], cache_interval=2)
    assert relative_l2(found, wanted["cached"]) < LIMITS["fp32"]
    assert relative_l2(wanted["cached"], wanted["both"]) > 1e-4


def test_a_run_from_an_image_has_the_lora(pipe: Pipeline, expected: Any) -> None:
    """As diffusers' inpainting has it."""
    wanted = expected(pipe.family.name)["started"]
    assert relative_l2(latents(pipe, CHOICES["both"], **START), wanted) < LIMITS["fp32"]
    assert relative_l2(latents(pipe, **START), wanted) > 0.001


def test_the_first_after_another_is_the_first_to_the_last_bit(pipe: Pipeline) -> None:
    first, _, again = (latents(pipe, {name: 1.0}) for name in ("a", "b", "a"))
    np.testing.assert_array_equal(again, first)


def test_two_in_one_batch_are_each_alone(pipe: Pipeline) -> None:
    calls = [
        arguments(lora=lora, seed=seed, output_type="latent")
        for seed, lora in enumerate([CHOICES["one"], CHOICES["other"], None, CHOICES["both"]])
    ]
    with Batcher(pipe) as batcher:
        futures = [batcher.submit(**call) for call in calls]
        for call, future in zip(calls, futures, strict=True):
            assert relative_l2(future.result(PATIENCE).latents, pipe(**call).latents) < LIMITS["fp32"]


def test_float16(bundle: Any, roomy: Any, expected: Any) -> None:
    with loaded(bundle("sd15", "fp16"), roomy("sd15")) as half:
        for title, lora in CHOICES.items():
            assert relative_l2(latents(half, lora), expected("sd15")[title]) < LIMITS["fp16"], title


def test_openvino(bundle: Any, roomy: Any, expected: Any) -> None:
    """With and without, ranks that differ: one compiled model for all of them."""
    with Pipeline.load(bundle("sd15"), "openvino", "cpu") as pipe:
        for name in ("a", "b"):
            pipe.add_lora(name, roomy("sd15").directory / f"{name}.safetensors")
        for title, lora in {**CHOICES, "none": {}}.items():
            assert relative_l2(latents(pipe, lora), expected("sd15")[title]) < LIMITS["fp32"], title


@pytest.fixture(scope="module")
def int8(bundle: Any, roomy: Any, shared_folder: Path) -> Path:
    """The same graph with int8 in its attention, on a grid that holds what comes there."""
    nodes = onnx.load(bundle("sd15") / "unet" / MODEL, load_external_data=False).graph.node
    weights = {
        name for name in (node.name for node in nodes) if name.endswith(("to_q/MatMul", "to_out.0/MatMul"))
    }
    quantized = Quantization(dict.fromkeys(weights, LayerScales(0.05)), {}, 0.0, 0.0, 1)
    return once(
        shared_folder / "roomy-sd15-int8",
        lambda directory: roomy("sd15").export(directory, "int8", quantized),
    )


def test_the_branch_of_an_int8_layer_is_not_quantized(int8: Path, roomy: Any, expected: Any) -> None:
    """It reads what comes to the layer before that is rounded, and a LoRA of scale 0 changes no bit."""
    nodes = onnx.load(int8 / "unet" / MODEL, load_external_data=False).graph.node
    made = {output: node.op_type for node in nodes for output in node.output}
    products = [node for node in nodes if node.op_type == "MatMul" and "to_q/MatMul." in node.name]
    assert products
    assert not any(made.get(source) == "DequantizeLinear" for node in products for source in node.input)
    with loaded(int8, roomy("sd15")) as pipe:
        none, both = latents(pipe), latents(pipe, CHOICES["both"])
        wanted = expected("sd15")
        assert relative_l2(both, wanted["both"]) < 0.5 * relative_l2(wanted["none"], wanted["both"])
        np.testing.assert_array_equal(latents(pipe, {"a": 0.0}), none)
