"""The LoRA that ships with the small model: in a bundle it draws in few steps without guidance."""

from __future__ import annotations

from pathlib import Path

import distill
import numpy as np
import pytest
import torch
import torch_model
from draw import held_out
from evaluate import sample, scores
from safetensors.torch import load_file

from controlnext.export import export_bundle
from controlnext.runtime import Pipeline

COUNT = 8


def test_the_file_is_small() -> None:
    """Under 3 MB, every tensor in float16."""
    assert distill.LORA.stat().st_size < 3_000_000
    assert {tensor.dtype for tensor in load_file(distill.LORA).values()} == {torch.float16}


def test_it_is_added_to_every_layer_that_it_names() -> None:
    """To base and increments: each weight becomes the exported one plus the product of the two matrices."""
    lora = load_file(distill.LORA)
    plain, distilled = (torch_model.reference(lora=given).denoiser for given in ([], [str(distill.LORA)]))
    layers = {name.removeprefix("unet.").rpartition(".lora_")[0] for name in lora}
    assert len(lora) == 2 * len(layers)
    for layer, weight in plain.state_dict().items():
        name = layer.removesuffix(".weight")
        wanted = weight
        if name in layers:
            down, up = (lora[f"unet.{name}.lora_{matrix}.weight"].float() for matrix in "AB")
            wanted = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            assert not torch.equal(wanted, weight)
        torch.testing.assert_close(distilled.state_dict()[layer], wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "bundle"
    export_bundle(torch_model.checkpoint(lora=[str(distill.LORA)]), "fp32", folder)
    return folder


@pytest.mark.export
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_bundle_draws_in_few_steps(bundle: Path, steps: int) -> None:
    """Without guidance; of all 64 drawings: examples/shapes/README.md."""
    options = {"sampler": "lcm", "num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "np"}
    with Pipeline.load(bundle, cache=False) as pipeline:
        images: np.ndarray = sample(pipeline, held_out(COUNT), **options)
    covered, colours = scores(images, held_out(COUNT))
    assert covered >= 0.85
    assert colours == 1
