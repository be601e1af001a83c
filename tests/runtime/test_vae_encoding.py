"""Encoding of images, in tiles too, and the enlarging of latents, equal diffusers and PyTorch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny

from controlnext.errors import WorkError
from controlnext.runtime.image_processing import resize_bilinear
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.tiling import tiles_of
from controlnext.runtime.vae import MOMENTS, encode_samples
from support.recipe import fill, rand

SCALED = {"scaling_factor": 0.25}


def _encoder(vae: Any) -> Any:
    """An engine that runs the stock encoder."""
    tiny = isinstance(vae, AutoencoderTiny)
    name = "latents" if tiny else MOMENTS

    @torch.no_grad()
    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vae.disable_tiling()
        encoded = vae.encode(torch.from_numpy(feed["sample"]))
        return {name: (encoded.latents if tiny else encoded.latent_dist.parameters).numpy()}

    return SimpleNamespace(outputs=[SimpleNamespace(name=name)], run=run)


def _full(**changes: Any) -> Any:
    sizes = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "sample_size": 64, **changes}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return fill(AutoencoderKL(**sizes, **blocks), 1)


def _tiny() -> Any:
    layers = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    return fill(
        AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, **layers), 1
    )


@pytest.mark.parametrize("kind", [_full, _tiny])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 64), (136, 168), (64, 520)])
def test_tiles_equal_diffusers(kind: Any, height: int, width: int) -> None:
    """Images that fit in one tile, that just do not, and that are several tiles wide and high."""
    vae, samples = kind(), rand(2, 2, 3, height, width)
    tiles = tiles_of(type(vae).__name__)(64, 8)
    vae.enable_tiling()
    with torch.no_grad():
        encoded = vae.encode(torch.from_numpy(samples))
    generator = torch.Generator().manual_seed(3)
    wanted = encoded.latents if kind is _tiny else encoded.latent_dist.sample(generator)
    got = encode_samples(_encoder(vae), SCALED, samples, TorchGenerator(3), tiles)
    np.testing.assert_allclose(got, 0.25 * wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "apply"),
    [
        ({"shift_factor": 0.5}, lambda x: (x - 0.5) * 0.25),
        (
            {"latents_mean": [1, 2, 3, 4], "latents_std": [2.0] * 4},
            lambda x: (x - x.new_tensor([1, 2, 3, 4]).reshape(4, 1, 1)) / 8,
        ),
    ],
)
def test_latents_are_scaled_as_diffusers_scales_them(config: dict[str, Any], apply: Any) -> None:
    vae, samples = _full(), rand(2, 1, 3, 64, 64)
    got = encode_samples(_encoder(vae), {**SCALED, **config}, samples, TorchGenerator(3))
    with torch.no_grad():
        drawn = vae.encode(torch.from_numpy(samples)).latent_dist.sample(torch.Generator().manual_seed(3))
    np.testing.assert_allclose(got, apply(drawn).numpy(), atol=1e-5)


def test_an_encoder_that_overflows_is_told() -> None:
    run = lambda _feed: {MOMENTS: np.full((1, 8, 2, 2), np.inf, np.float32)}  # noqa: E731
    encoder: Any = SimpleNamespace(outputs=[SimpleNamespace(name=MOMENTS)], run=run)
    with pytest.raises(WorkError, match="the encoded image is not finite: this VAE overflows with it"):
        encode_samples(encoder, SCALED, rand(1, 1, 3, 16, 16), TorchGenerator(0))


@pytest.mark.parametrize("size", [(12, 18), (9, 13), (8, 8), (33, 12)])
def test_latents_are_enlarged_as_pytorch_does(size: tuple[int, int]) -> None:
    latents = rand(4, 2, 4, 8, 12)
    wanted = F.interpolate(torch.from_numpy(latents), size, mode="bilinear").numpy()
    np.testing.assert_allclose(resize_bilinear(latents, size), wanted, atol=2e-6)
