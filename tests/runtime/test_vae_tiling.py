"""Decoding in tiles: diffusers' arithmetic, one tile at a time, and who refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_model
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controlnext.bundle.files import MANIFEST
from controlnext.engines import Engine
from controlnext.errors import InputError, WorkError
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.runtime.tiling import Tiles, TinyTiles
from controlnext.runtime.vae import decode_latents
from support.cli import Cli, assert_refused
from support.exports import load_tiny
from support.fake_bundle import write_fake_bundle
from support.recipe import LATENTS, PIXELS, drawing, rand

TILE, FACTOR = 8, 8

# the other models' tiles are 128 pixels, those of sd3 32
SIZES = {
    "sd15": [(136, 168), (104, 200), (224, 128)],
    "sdxl": [(200, 136), (320, 232)],
    "sd3": [(80, 48), (32, 112)],
}


class _Decoder(Engine):
    """Every sample depends on its place in the tile and on the whole tile, as with a VAE."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, feed: Any) -> dict[str, np.ndarray]:
        latents = feed["latent_sample"]
        self.seen.append(latents.shape)
        return {"sample": _decoded(torch.from_numpy(latents)).numpy()}

    def _run(self, feed: Any, replaced: Any) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _close(self) -> None:
        pass


def _decoded(latents: torch.Tensor) -> torch.Tensor:
    samples = F.interpolate(latents[:, :3], scale_factor=FACTOR)
    ramp = torch.linspace(-1, 1, samples.shape[-1]) + torch.linspace(-1, 1, samples.shape[-2])[:, None]
    return samples * latents.std() + ramp


def _diffusers_image(latents: np.ndarray) -> np.ndarray:
    vae = AutoencoderKL(
        block_out_channels=(1,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1,
        sample_size=TILE * FACTOR,
        use_post_quant_conv=False,
    )
    vae.enable_tiling()
    vae.decoder.forward = _decoded
    with torch.no_grad():
        samples = vae.decode(torch.from_numpy(latents)).sample
    return (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@given(st.integers(1, 30), st.integers(1, 30))
@pytest.mark.export
def test_tiles_are_those_of_diffusers(height: int, width: int) -> None:
    """To the last bit: where tiles are cut, how they are blended, in corners and where the last is a strip
    that is narrower than the overlap."""
    latents, decoder = rand(height, 2, 4, height, width), _Decoder()
    tiles = Tiles.of(TILE * FACTOR, FACTOR)
    (got,) = decode_latents(decoder, {"scaling_factor": 1.0}, latents, 2, tiles)
    np.testing.assert_array_equal(got, _diffusers_image(latents))
    assert all(max(shape[2:]) <= TILE for shape in decoder.seen), "never more than a tile"


@given(st.integers(1, 30), st.integers(1, 30))
@pytest.mark.export
def test_tiles_of_a_tiny_vae_are_those_of_diffusers(height: int, width: int) -> None:
    """Others than a VAE's: an eighth is shared, and blended in both directions at once."""
    vae = AutoencoderTiny(encoder_block_out_channels=(1,) * 4, decoder_block_out_channels=(1,) * 4)
    vae.tile_latent_min_size = TILE
    vae.enable_tiling()
    vae.decoder.forward = _decoded
    latents, decoder = rand(height, 2, 4, height, width), _Decoder()
    (got,) = decode_latents(decoder, {"scaling_factor": 1.0}, latents, 2, TinyTiles(TILE, FACTOR))
    with torch.no_grad():
        samples = vae.decode(torch.from_numpy(latents)).sample
    wanted = (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert all(max(shape[2:]) <= TILE for shape in decoder.seen), "never more than a tile"


def test_one_image_and_one_tile_at_a_time() -> None:
    """At a tile of 8 latents the next one begins 6 further."""
    decoder = _Decoder()
    tiles = Tiles.of(TILE * FACTOR, FACTOR)
    images = list(decode_latents(decoder, {"scaling_factor": 1.0}, rand(0, 2, 4, 9, 14), 1, tiles))
    assert [image.shape for image in images] == [(1, 72, 112, 3)] * 2
    row = [(1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 2)]
    assert decoder.seen == [*row, *((1, 4, 3, shape[3]) for shape in row)] * 2


def test_a_tile_that_overflows_is_named() -> None:
    latents = rand(0, 1, 4, 9, 9)
    latents[..., -1, -1] = np.inf
    with pytest.raises(WorkError, match="decoded image is not finite: this VAE overflows"):
        list(decode_latents(_Decoder(), {"scaling_factor": 1.0}, latents, 1, Tiles(TILE, FACTOR)))


def _arguments(variant: str, height: int, width: int) -> dict[str, Any]:
    """Two prompts."""
    tokens, pooled = {"sd15": (48, 0), "sdxl": (48, 24), "sd3": (32, 40)}[variant]
    embeds = {"prompt_embeds": rand(1, 2, 77, tokens), "negative_prompt_embeds": rand(2, 2, 77, tokens)}
    if pooled:
        embeds |= {
            "pooled_prompt_embeds": rand(3, 2, pooled),
            "negative_pooled_prompt_embeds": rand(4, 2, pooled),
        }
    image = {"control_image": drawing(5, width, height), "height": height, "width": width}
    return {**embeds, **image, "num_inference_steps": 2}


@pytest.mark.parametrize("variant", SIZES)
def test_images_equal_the_references(
    variant: str, tiny: Callable[..., Path], tiny_checkpoint: Callable[[str], Path]
) -> None:
    """Sizes that tiles do not divide; a side that fits into one tile but not into a stride; two images."""
    reference = reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for height, width in SIZES[variant]:
            arguments = _arguments(variant, height, width)
            wanted = reference(**arguments, vae_tiling=True)
            out = pipe(**arguments, vae_tiling=True, output_type="np")
            error = np.linalg.norm(out.latents - wanted.latents) / np.linalg.norm(wanted.latents)
            assert error <= LATENTS["fp32"]
            assert np.abs(out.images - wanted.images).max() <= PIXELS["fp32"]
            whole = pipe.decode(out.latents, "np")
            assert np.abs(out.images - whole).max() > 10 * PIXELS["fp32"], "tiles are part of the result"


@pytest.mark.export
def test_the_reference_tiles_only_when_asked(tiny_checkpoint: Callable[[str], Path]) -> None:
    reference = reference_pipeline(load_tiny("sd15", tiny_checkpoint("sd15")))
    arguments = _arguments("sd15", 136, 128)
    before, tiled, after = (reference(**arguments, vae_tiling=asked).images for asked in (False, True, False))
    np.testing.assert_array_equal(after, before)
    assert not np.array_equal(tiled, before)


def test_the_trained_model(shapes_bundle: Path) -> None:
    """A whole run with a prompt, not square. Tiles change single pixels by up to a third of their range, but
    it stays the same image: by 0.02 on average."""
    reference = torch_model.reference()
    arguments = {"prompt": "a red circle on a blue background", "num_inference_steps": 6, "seed": 3}
    arguments |= {"control_image": drawing(2, 208, 168), "height": 168, "width": 208}
    wanted = reference(**arguments, vae_tiling=True)
    with Pipeline.load(shapes_bundle, cache=False) as pipe:
        out = pipe(**arguments, vae_tiling=True, output_type="np")
        assert np.abs(out.images - wanted.images).max() <= PIXELS["fp32"]
        whole = pipe.decode(out.latents, "np")
        assert PIXELS["fp32"] < np.abs(out.images - whole).max()
        assert np.abs(out.images - whole).mean() < 0.05
        for got in (pipe.decode(out.latents, vae_tiling=True), pipe.images(out.latents, vae_tiling=True)):
            (image,) = got
            np.testing.assert_array_equal(np.asarray(image), (out.images[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 120)])
def test_an_image_that_one_tile_holds_is_the_same(tiny: Callable[..., Path], height: int, width: int) -> None:
    with Pipeline.load(tiny("sd15"), cache=False) as pipe:
        latents = rand(1, 1, 4, height // 8, width // 8)
        np.testing.assert_array_equal(pipe.decode(latents, "np", vae_tiling=True), pipe.decode(latents, "np"))


@pytest.mark.parametrize("size", [None, 100, 48, 0, -32, [32, 32], 32.0])
def test_sizes_that_cannot_be_cut_are_refused(tmp_path: Path, size: object) -> None:
    """Before anything is sampled. diffusers' tiles would not meet there."""
    path = write_fake_bundle(tmp_path / "bundle")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["configs"]["vae"]["sample_size"] = size
    (path / MANIFEST).write_text(json.dumps(manifest))
    with Pipeline.load(path, cache=False) as pipe:
        with pytest.raises(InputError, match=r"sample_size of this VAE is .*; tiles need a multiple of 32"):
            pipe.stream("a", control_image=drawing(1, 16, 16), vae_tiling=True)
        with pytest.raises(InputError, match="vae_tiling is 'no'; it must be True or False"):
            pipe.stream("a", control_image=drawing(1, 16, 16), vae_tiling="no")


def test_clips_are_not_tiled(tiny: Callable[..., Path]) -> None:
    with Pipeline.load(tiny("svd"), cache=False) as pipe:
        refused = pytest.raises(InputError, match="not supported by the VAE of Stable Video Diffusion")
        with refused:
            pipe.stream(drawing(1, 64, 64), [drawing(2, 64, 64)], vae_tiling=True)
        with refused:
            pipe.decode(rand(0, 1, 2, 4, 8, 8), vae_tiling=True)
        assert not pipe.bundle.backends


def test_the_command_line(cli: Cli, tmp_path: Path, shapes_bundle: Path) -> None:
    drawing(2, 160, 136).save(tmp_path / "control.png")
    output = tmp_path / "image.png"
    words = ["--prompt", "a red circle", "--control-image", tmp_path / "control.png", "--steps", "1"]
    done = cli("run", shapes_bundle, *words, "--vae-tiling", "--output", output)
    assert (done.status, done.err) == (0, "")
    arguments = {"control_image": drawing(2, 160, 136), "num_inference_steps": 1}
    with Pipeline.load(shapes_bundle) as pipe:
        (tiled,) = pipe("a red circle", **arguments, vae_tiling=True).images
        (whole,) = pipe("a red circle", **arguments).images
    with Image.open(output) as image:
        assert image.tobytes() == tiled.tobytes() != whole.tobytes()


def test_the_command_line_refuses_it_for_clips(cli: Cli, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    drawing(1, 64, 64).save(tmp_path / "image.png")
    (tmp_path / "control").mkdir()
    drawing(2, 64, 64).save(tmp_path / "control" / "0.png")
    given_files = ["--image", tmp_path / "image.png", "--control-image", tmp_path / "control"]
    output = tmp_path / "clip.gif"
    done = cli("run", tiny("svd"), *given_files, "--vae-tiling", "--output", output)
    assert_refused(
        done, "Stable Video Diffusion does not support --vae-tiling; accepted: ", "; remove --vae-tiling"
    )
    assert not output.exists()
