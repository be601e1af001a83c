"""Bundles with tiny VAEs against diffusers: decoders and encoders at every precision, tiles, previews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from draw import held_out, image
from evaluate import scores

from controlnext.engines import select_backend
from controlnext.evaluation.metrics import relative_l2
from controlnext.evaluation.parity import LIMITS, measure
from controlnext.export import export_bundle
from controlnext.families import get_family
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.types import Precision
from controlnext.weights import Checkpoint, bundle_checkpoint, load_checkpoint
from support.exports import SHAPES, once
from support.recipe import LATENTS, PIXELS, VARIANTS, drawing, rand
from support.tiny_vaes import save_tiny, tiny_vae, vaes_alone, with_vaes

pytestmark = pytest.mark.export

CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "svd": 4}
SCORED = 64
SIZES = [(1, 5, 7), (2, 8, 6), (3, 16, 9)]


@pytest.fixture(scope="module")
def checkpoint(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Checkpoint]:
    """Return a function that loads a tiny model with a tiny VAE in place of its own, and another one for
    previews."""

    def load(variant: str) -> Checkpoint:
        folder = tiny_checkpoint(variant)
        channels, family = CHANNELS[variant], get_family(VARIANTS[variant][0])

        def make(directory: Path) -> None:
            save_tiny(tiny_vae(channels), directory / "vae")
            save_tiny(tiny_vae(channels, seed=22), directory / "previews", scaling_factor=0.8)

        vaes = once(shared_folder / f"vaes-{channels}", make)
        return load_checkpoint(
            family,
            base=folder / "base",
            control=folder / "control.safetensors",
            vae=vaes / "vae" if family.networks["vae"].alternatives else None,
            preview_vae=vaes / "previews",
        )

    return load


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("variant", ["sd15", "sd3"])
def test_graphs_equal_diffusers(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path, variant: str, precision: Precision
) -> None:
    """At sizes that no graph was traced at; int8 leaves them in the compute precision."""
    loaded = vaes_alone(checkpoint(variant))
    manifest = export_bundle(loaded, precision, tmp_path / "bundle", sample=lambda _bundle, _denoise: None)
    plain = Precision.FP32 if precision == Precision.INT8 else precision
    assert {graph.precision for graph in manifest.graphs.values()} == {plain}
    assert manifest.graphs["vae_encoder"].outputs[0].name == "latents"
    backend = select_backend("onnxruntime", "cpu", "auto", 1)
    with torch.no_grad():
        for graph_name, expected in reference_outputs(loaded).items():
            with backend.open(tmp_path / "bundle", manifest, graph_name, cache=False) as engine:
                for name, given, wanted in expected:
                    (got,) = engine.run({name: given}).values()
                    assert relative_l2(got, wanted) <= LIMITS[plain].graph, graph_name


def reference_outputs(checkpoint: Checkpoint) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Return what diffusers makes of some latents and images: name of the input, input, output."""
    full, previews = (checkpoint.networks[name].module() for name in ("vae", "preview_vae"))
    channels = full.config.latent_channels
    latents = [3 * rand(seed, count, channels, h, w) for seed, (count, h, w) in enumerate(SIZES)]
    images = [rand(seed, count, 3, 8 * h, 8 * w) for seed, (count, h, w) in enumerate(SIZES)]
    calls = {
        "vae_decoder": ("latent_sample", latents, lambda x: full.decode(x).sample),
        "preview_decoder": ("latent_sample", latents, lambda x: previews.decode(x).sample),
        "vae_encoder": ("sample", images, lambda x: full.encode(x).latents),
    }
    return {
        graph_name: [(name, one, call(torch.from_numpy(one)).numpy()) for one in given]
        for graph_name, (name, given, call) in calls.items()
    }


@pytest.fixture(scope="module")
def bundle(
    shared_folder: Path, tiny: Callable[..., Path], checkpoint: Callable[..., Checkpoint]
) -> Callable[[str], Path]:
    """Return a function that makes such a model's bundle. Tests must not write to it."""

    def export(variant: str) -> Path:
        directory = shared_folder / f"tiny-vae-{variant}"
        make = lambda folder: with_vaes(tiny(variant), checkpoint(variant), folder / "bundle")  # noqa: E731
        return once(directory, make) / "bundle"

    return export


def image_arguments(pipe: Pipeline, height: int, width: int) -> dict[str, Any]:
    widths = {name: spec.shape[-1] for name, spec in pipe.inputs.items()}
    shapes = {"prompt_embeds": (2, 77, widths["encoder_hidden_states"])}
    if pooled := pipe.family.pooled_input:
        shapes["pooled_prompt_embeds"] = (2, widths[pooled])
    names = [f"{side}{name}" for name in shapes for side in ("", "negative_")]
    embeds = {name: rand(seed, *shapes[name.removeprefix("negative_")]) for seed, name in enumerate(names, 1)}
    image = drawing(5, width, height)
    return {**embeds, "control_image": image, "height": height, "width": width, "num_inference_steps": 2}


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_images_previews_and_tiles_equal_diffusers(
    bundle: Callable[[str], Path], checkpoint: Callable[..., Checkpoint], variant: str
) -> None:
    """A run of the stock pipeline with the tiny VAE; previews in the result's size; tiles at sizes of one, of
    several and of narrow ones."""
    reference = reference_pipeline(checkpoint(variant))
    assert isinstance(reference.pipeline.vae, diffusers.AutoencoderTiny)
    with Pipeline.load(bundle(variant), cache=False) as pipe:
        for height, width, tiling in [(72, 136, False), (72, 136, True), (520, 80, True), (136, 968, True)]:
            arguments = image_arguments(pipe, height, width)
            wanted = reference(**arguments, vae_tiling=tiling)
            out = pipe(**arguments, vae_tiling=tiling, output_type="np")
            assert relative_l2(out.latents, wanted.latents) <= LATENTS["fp32"]
            assert np.abs(out.images - wanted.images).max() <= PIXELS["fp32"]
        tiled, whole = out.images, pipe.decode(out.latents, "np")
        assert np.abs(tiled - whole).max() > 10 * PIXELS["fp32"], "tiles are part of the result"
        previews = pipe.preview(out.latents, "np")
        assert np.abs(previews - reference.preview(out.latents)).max() <= PIXELS["fp32"]
        assert previews.shape == whole.shape
        assert np.abs(previews - whole).max() > 0.01, "the other VAE"
        assert [image.size for image in pipe.preview(out.latents)] == [(968, 136)] * 2


def test_a_clip_is_previewed_frame_by_frame(
    bundle: Callable[[str], Path], checkpoint: Callable[..., Checkpoint]
) -> None:
    latents = rand(3, 1, 4, 4, 8, 8)
    with Pipeline.load(bundle("svd"), cache=False) as pipe:
        clip = pipe.preview(latents, "np")
        alone = pipe.preview(latents[:, 2:3], "np")
    assert clip.shape == (1, 4, 64, 64, 3)
    np.testing.assert_array_equal(clip[:, 2:3], alone)
    wanted = reference_pipeline(checkpoint("svd")).preview(latents)
    assert np.abs(clip[0] - wanted).max() <= PIXELS["fp32"]


def test_parity_has_rows_of_both_vaes(bundle: Callable[[str], Path]) -> None:
    """Also with the bundle's own weights, as ``verify`` measures it: its graphs hold only the decoder of the
    VAE of previews."""
    read = bundle_checkpoint(bundle("sd15"))
    tensors = read.networks["preview_vae"].tensors
    assert torch.equal(tensors["decoder.layers.0.weight"], tiny_vae(seed=22).decoder.layers[0].weight)
    assert not tensors["encoder.layers.0.weight"].any()
    rows = {row.name: row for row in measure(bundle("sd15"), read, lambda _stage, _fraction: None)}
    assert all(row.passed for row in rows.values())
    assert {"vae_decoder: sample", "vae_encoder: latents", "preview_decoder: sample"} <= rows.keys()
    assert rows["preview, 6 steps 128x128"].metric == "PSNR in dB"


def test_the_small_models_tiny_vae_decodes_as_well_as_its_vae() -> None:
    """Held-out drawings, encoded by the VAE: overlap and colours within 0.02 of those of its own decoder."""
    full = diffusers.AutoencoderKL.from_pretrained(SHAPES / "base/vae", torch_dtype=torch.float32)
    tiny = diffusers.AutoencoderTiny.from_pretrained(SHAPES / "tiny_vae", torch_dtype=torch.float32)
    drawings = held_out(SCORED)
    images = torch.from_numpy(np.stack([image(one) for one in drawings])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = full.encode(images).latent_dist.mean
        decoded = full.decode(latents).sample, tiny.decode(latents * full.config.scaling_factor).sample
        encoded = tiny.encode(images).latents / full.config.scaling_factor
    wanted, found = (scores(VaeImageProcessor().postprocess(one, "np"), drawings) for one in decoded)
    assert min(found) >= 0.9
    assert all(got >= want - 0.02 for got, want in zip(found, wanted, strict=True))
    assert relative_l2(encoded.numpy(), latents.numpy()) < 0.5
    assert sum(file.stat().st_size for file in (SHAPES / "tiny_vae").iterdir()) < 1e6
