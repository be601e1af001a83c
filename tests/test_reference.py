"""The PyTorch reference equals the published implementation bit for bit (tests/golden: recorded from it)."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import recipe
import torch
from recipe import drawing, fill
from safetensors import safe_open

from controlnext.control import ControlModule
from controlnext.injection import CrossNormalization, inject
from controlnext.reference import ReferencePipeline
from controlnext.registry import ControlSpec, get_family
from controlnext.weights import load_checkpoint

GOLDEN = Path(__file__).parent / "golden"


def rand(seed: int, *shape: int, kind: str = "normal") -> torch.Tensor:
    return torch.from_numpy(recipe.rand(seed, *shape, kind=kind))


def read(name: str):
    file = safe_open(GOLDEN / f"{name}.safetensors", "pt")
    return json.loads(file.metadata()["spec"]), file


@pytest.fixture(autouse=True)
def _as_many_threads_as_recorded():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_recorded(got: torch.Tensor, recorded: torch.Tensor, exact: bool = True) -> None:
    """Equal to the last bit where the kernels are those of the recording, else up to rounding.

    Float32 sums depend on the vector width and on how work is divided among threads. Without guidance the
    batch is a single row, which the threads share; those runs differ by 6e-6 (two threads) to 1e-5 (one
    thread) on latents of deviation 7.6. With two rows each thread has its own.
    """
    if exact and torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(got, recorded)
    else:
        torch.testing.assert_close(got, recorded, rtol=0, atol=4e-5)


def test_network_equals_the_recorded_one():
    spec, vectors = read("sdxl")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["unet_config"].items()}
    unet = fill(diffusers.UNet2DConditionModel(**tuples), spec["unet_seed"])
    control = fill(ControlModule(ControlSpec(spec["control_last_width"])), spec["control_seed"])
    normalization = CrossNormalization(get_family("sdxl").variant("sdxl").injection)
    for case in spec["cases"]:
        s, b, h, w = case["seed"], case["batch"], case["height"], case["width"]
        timestep = torch.full((b,), case["timestep"])
        added = {
            "text_embeds": rand(s + 3, b, 24),
            "time_ids": torch.tensor([[8.0 * h, 8.0 * w, 0, 0, 8.0 * h, 8.0 * w]] * b),
        }
        with torch.no_grad():
            feature = control(rand(s + 1, b, 3, 8 * h, 8 * w, kind="uniform"), timestep)
            with inject(unet, normalization, feature, torch.tensor(case["scale"])):
                got = unet(rand(s, b, 4, h, w), timestep, rand(s + 2, b, 77, 48), added_cond_kwargs=added)
        assert_recorded(feature, vectors.get_tensor(case["name"] + ".control"))
        assert_recorded(got.sample, vectors.get_tensor(case["name"] + ".noise_pred"))


CASES = read("sdxl-pipeline")[0]["cases"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint_dir):
    base, control = tiny_checkpoint_dir / "base", tiny_checkpoint_dir / "control.safetensors"
    return ReferencePipeline(load_checkpoint(get_family("sdxl"), base=base, control=control))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['scheduler']}-{c['steps']}-guidance{c['guidance']}"
)
def test_sampling_run_equals_the_recorded_one(pipeline, case):
    _, vectors = read("sdxl-pipeline")
    s, width, height, batch = case["seed"], case["width"], case["height"], case["batch"]
    output = pipeline(
        prompt_embeds=rand(s, batch, 77, 48).numpy(),
        negative_prompt_embeds=rand(s + 1, batch, 77, 48).numpy(),
        pooled_prompt_embeds=rand(s + 2, batch, 24).numpy(),
        negative_pooled_prompt_embeds=rand(s + 3, batch, 24).numpy(),
        latents=rand(s + 4, batch, 4, height // 8, width // 8).numpy(),
        control_image=drawing(s + 5, width, height),
        control_scale=case["control_scale"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        height=height,
        width=width,
        sampler=case["scheduler"],
        seed=case["generator_seed"],
    )
    images = torch.from_numpy(output.images).permute(0, 3, 1, 2)
    guided = case["guidance"] > 1
    assert_recorded(torch.from_numpy(output.latents), vectors.get_tensor(case["name"] + ".latents"), guided)
    assert_recorded(images, vectors.get_tensor(case["name"] + ".image"), guided)
