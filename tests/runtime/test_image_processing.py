"""The image encoder's resize against diffusers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from controlnext.errors import InputError
from controlnext.runtime.image_processing import preprocess_for_clip, resize_antialiased
from support.recipe import rand

# values are in [-1, 1]; measured: 1.4e-6
TOLERANCE = 5e-6


def _compare(height: int, width: int, size: tuple[int, int]) -> None:
    """Noise is the hardest image: every weight shows."""
    image = 2 * rand(0, 3, height, width, kind="uniform") - 1
    wanted = _resize_with_antialiasing(torch.from_numpy(image)[None], size)[0].numpy()
    got = resize_antialiased(image, size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("height", "width"),
    [(576, 1024), (224, 224), (223, 225), (224, 1000), (449, 451), (100, 50), (1080, 720), (2, 3), (2, 2000)],
)
def test_the_published_size_is_that_of_diffusers(height: int, width: int) -> None:
    _compare(height, width, (224, 224))


@settings(max_examples=100)
@given(*(st.integers(2, 200),) * 2, *(st.integers(1, 60),) * 2)
def test_any_size_is_that_of_diffusers(height: int, width: int, new_height: int, new_width: int) -> None:
    _compare(height, width, (new_height, new_width))


def test_one_number_is_height_and_width() -> None:
    image = rand(1, 3, 20, 31)
    np.testing.assert_array_equal(resize_antialiased(image, 7), resize_antialiased(image, (7, 7)))


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_single_row_or_column_is_refused_as_pytorch_refuses_it(shape: tuple[int, int]) -> None:
    image = rand(2, 3, *shape)
    with pytest.raises(RuntimeError, match="Padding size"):
        _resize_with_antialiasing(torch.from_numpy(image)[None], (4, 4))
    height, width = shape
    with pytest.raises(InputError, match=f"is {width} x {height} pixels; give one of 2 x 2 or more"):
        resize_antialiased(image, 4)


class _Identity(nn.Module):
    """An image encoder whose embedding is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: torch.Tensor) -> object:
        return type("Output", (), {"image_embeds": pixels.flatten(1)})


@pytest.mark.parametrize("size", [(300, 181), (64, 96)])
def test_the_pixels_are_those_of_the_stock_pipeline(size: tuple[int, int]) -> None:
    """From a PIL image to what the image encoder is given, with the feature extractor's normalization."""
    pixels = (rand(3, size[1], size[0], 3, kind="uniform") * 255).astype(np.uint8)
    extractor = CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.5, 0.75])
    pipeline = StableVideoDiffusionPipeline(None, _Identity(), None, None, extractor)
    embeds = pipeline._encode_image(Image.fromarray(pixels), "cpu", 1, do_classifier_free_guidance=False)
    wanted = embeds.numpy().reshape(1, 3, 224, 224)
    image = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    got = preprocess_for_clip(image, extractor.image_mean, extractor.image_std, 224)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
