"""The crop around a mask, and the result put back into the image, equal diffusers' image processor."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from controlnext.runtime.mask_crop import crop_around, filled, overlaid

PROCESSOR = VaeImageProcessor()


@pytest.mark.parametrize("seed", range(60))
def test_crops_and_overlays_equal_diffusers(seed: int) -> None:
    """Bit for bit, for masks anywhere in images of any proportions, with soft masks too."""
    chance = np.random.default_rng(seed)
    width, height = chance.integers(5, 90, 2).tolist()
    wide, high = (8 * chance.integers(1, 12, 2)).tolist()
    image = Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
    columns, rows = (np.sort(chance.integers(0, side, 2)) for side in (width, height))
    pixels = np.zeros((height, width), np.uint8)
    pixels[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = chance.choice([255, 200, 100])
    mask, padding = Image.fromarray(pixels), int(chance.integers(0, 20))
    region = VaeImageProcessor.get_crop_region(mask, wide, high, pad=padding)
    crop = crop_around(mask, high, wide, padding)
    assert crop is not None
    assert (crop.left, crop.upper, crop.right, crop.lower) == region
    for whole in (image, mask):
        wanted = PROCESSOR.resize(whole.crop(region), high, wide, resize_mode="fill").convert(whole.mode)
        np.testing.assert_array_equal(np.asarray(filled(crop.of(whole), high, wide)), np.asarray(wanted))
    for result, part, theirs in ((wide, high), crop, region), ((width, height), None, None):
        made = Image.fromarray(chance.integers(0, 256, (*result[::-1], 3), dtype=np.uint8))
        got, expected = overlaid(image, mask, made, part), PROCESSOR.apply_overlay(mask, image, made, theirs)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_a_black_mask_has_no_crop() -> None:
    assert crop_around(Image.new("L", (8, 8)), 8, 8, 0) is None
