"""Denoisers that take the guidance scale as an embedding: exported, run and batched as in diffusers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.parity import measure
from controlnext.reference import reference_pipeline
from controlnext.runtime import Batcher, Pipeline
from controlnext.runtime.guidance import guidance_embedding
from support.distilled import WIDTH, write_distilled
from support.exports import export_tiny, load_tiny, once
from support.recipe import drawing, rand
from support.two_controls import difference

pytestmark = pytest.mark.export

SIDE = 64
LIMIT = 1e-4
"""Relative L2 of a run's latents; the parity of float32 exports allows twice that."""


@pytest.fixture(scope="session")
def distilled(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return the checkpoint of a variant with such a denoiser."""
    return lambda variant: once(
        shared_folder / f"distilled-{variant}", partial(write_distilled, tiny_checkpoint(variant))
    )


@pytest.fixture(scope="session")
def bundle(shared_folder: Path, distilled: Callable[[str], Path]) -> Callable[[str, str], Path]:
    """Return its bundle of a precision."""
    return lambda variant, precision: once(
        shared_folder / f"distilled-{variant}-{precision}",
        partial(export_tiny, variant, distilled(variant), precision),
    )


@pytest.fixture
def pipe(bundle: Callable[[str, str], Path], variant: str) -> Iterator[Pipeline]:
    with Pipeline.load(bundle(variant, "fp32"), cache=False) as pipeline:
        yield pipeline


def _arguments(variant: str, guidance: float, seed: int = 3, **changes: Any) -> dict[str, Any]:
    given = {"prompt_embeds": rand(seed, 1, 77, 48), "negative_prompt_embeds": rand(seed + 1, 1, 77, 48)}
    if variant == "sdxl":
        given["pooled_prompt_embeds"] = rand(seed + 2, 1, 24)
        given["negative_pooled_prompt_embeds"] = rand(seed + 3, 1, 24)
    usual = {"guidance_scale": guidance, "num_inference_steps": 3, "height": SIDE, "width": SIDE}
    return {**given, **usual, "control_image": drawing(4, SIDE, SIDE), "seed": seed, **changes}


@pytest.mark.parametrize("guidance", [0.0, 0.3, 1.0, 1.5, 7.5, 8.5, 20.25])
@pytest.mark.parametrize("width", [4, 255, 256, 512])
def test_the_embedding_is_diffusers(guidance: float, width: int) -> None:
    """But for one rounding of an angle, which is up to 1000 times the guidance scale less one."""
    wanted = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, torch.tensor(guidance - 1).repeat(3), width
    ).numpy()
    got = guidance_embedding(guidance, width, 3)
    assert got.dtype == np.float32
    rounding = np.spacing(np.float32(1000 * max(abs(guidance - 1), 1e-3)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rounding + 2e-7)


@pytest.mark.parametrize(("variant", "precision"), [("sd15", "fp32"), ("sd15", "fp16"), ("sdxl", "fp32")])
def test_an_export_equals_pytorch(
    bundle: Callable[[str, str], Path], distilled: Callable[[str], Path], variant: str, precision: str
) -> None:
    path = bundle(variant, precision)
    inputs = {tensor.name: tensor.shape for tensor in read_manifest(path).graphs["unet"].inputs}
    assert inputs["timestep_cond"] == ["batch", WIDTH]
    rows = measure(path, load_tiny(variant, distilled(variant)), lambda _stage, _fraction: None)
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_a_run_is_diffusers_with_one_row_for_an_image(
    pipe: Pipeline, distilled: Callable[[str], Path], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every guidance scale, and whatever the negative prompt; an end of guidance has nothing to end."""
    reference, found, rows = reference_pipeline(load_tiny(variant, distilled(variant))), [], set()
    engine = pipe.bundle.engine("unet")
    run = engine._run

    def counted(feed: dict[str, np.ndarray], replaced: Collection[str]) -> dict[str, np.ndarray]:
        rows.add(len(feed["sample"]))
        return run(feed, replaced)

    monkeypatch.setattr(engine, "_run", counted)
    for guidance in (0.0, 1.0, 8.5):
        arguments = _arguments(variant, guidance, num_images_per_prompt=2 if variant == "sd15" else 1)
        found.append(pipe(**arguments, guidance_end=0.5, output_type="latent").latents)
        assert difference(found[-1], reference(**arguments).latents) < LIMIT
    assert rows == {len(found[0])}
    assert difference(found[0], found[1]) > 100 * LIMIT < difference(found[2], found[1])


@pytest.mark.parametrize("variant", ["sd15"])
def test_requests_of_different_guidance_share_a_batch(pipe: Pipeline, variant: str) -> None:
    requests = [
        _arguments(variant, guidance, seed, output_type="latent")
        for seed, guidance in enumerate((1.0, 4.0, 8.5, 4.0))
    ]
    with Batcher(pipe, max_rows=4) as batcher:
        futures = [batcher.submit(**request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            assert difference(future.result(60).latents, pipe(**request).latents) < LIMIT
