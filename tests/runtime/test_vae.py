"""Images: what is accepted, resizing as diffusers does, decoding."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from controlnext.engines import Engine
from controlnext.errors import InputError, WorkError
from controlnext.runtime.vae import control_array, decode_latents, read_images, to_pil
from support.fake_bundle import VAE_CONFIG
from support.recipe import drawing, rand


def _array(given: object, height: int = 16, width: int = 24) -> np.ndarray:
    return control_array(read_images(given), height, width)


def _photo(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.RandomState(7).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(24, 16), (50, 31), (9, 100)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_equals_diffusers_image_processor(size: tuple[int, int], mode: str) -> None:
    """The reference's way with a control image, of the right size and of others."""
    image = _photo(*size).convert(mode)
    processor = VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    wanted = processor.preprocess(image, height=16, width=24).numpy()
    got = _array(image)
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 16, 24)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = drawing(1, 24, 16).convert(mode)
    wanted = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(_array(image)[0], wanted)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_images_of_more_than_eight_bits_keep_their_levels(mode: str) -> None:
    """Depth maps: 65535 is white, and neighbouring levels stay apart."""
    levels = np.arange(16 * 24).reshape(16, 24) * 170
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray((levels / 65535 if mode == "F" else levels).astype(dtype))
    assert image.mode == mode
    got = _array(image)
    np.testing.assert_allclose(got[0], np.broadcast_to(levels / 65535, (3, 16, 24)), atol=1e-7)
    resized = _array(image, 8, 8)
    assert 0 <= resized.min() < resized.max() <= 1


def test_arrays_are_taken_as_the_images_they_are() -> None:
    image = _photo(50, 31)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(_array(pixels), _array(image))
    np.testing.assert_array_equal(_array(pixels[..., 0]), _array(image.getchannel(0)))
    floats = (pixels / 255).astype(np.float64)
    np.testing.assert_allclose(_array(floats, 31, 50), _array(image, 31, 50), atol=1e-7)
    # eight bits are clipped between the two passes of the filter, floats only after them
    assert np.abs(_array(floats) - _array(image)).mean() < 0.5 / 255
    np.testing.assert_array_equal(_array(floats[..., 1]), _array(np.stack([floats[..., 1]] * 3, axis=-1)))


def test_several_images() -> None:
    first, second = _photo(), drawing(3, 48, 32)
    both = _array([first, second])
    assert both.shape == (2, 3, 16, 24)
    np.testing.assert_array_equal(both[1:], _array(second))
    stack = np.stack([np.asarray(first), np.asarray(first)])
    np.testing.assert_array_equal(_array(stack), np.concatenate([_array(first)] * 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("image.png", "of type str"),
        ([], "no control image was given"),
        (np.zeros((4, 4, 2), np.float32), r"shape \(4, 4, 2\)"),
        (np.zeros((4, 4), np.int64), "cannot be read"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (np.full((4, 4, 3), 255.0), "values from 255 to 255"),
        (np.full((4, 4, 3), -0.5), "values from -0.5"),
    ],
)
def test_what_is_no_image_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(given)


class _Decoder(Engine):
    """Gives ``sample`` 8 times as large, its first three channels."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(feed["latent_sample"])
        return {"sample": feed["latent_sample"][:, :3].repeat(8, 2).repeat(8, 3)}

    def _run(self, feed: Mapping[str, np.ndarray], replaced: Collection[str]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("config", "unscaled"),
    [
        ({}, lambda x: x / 0.5),
        ({"shift_factor": 0.25}, lambda x: x / 0.5 + 0.25),
        (
            {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1, 2, 3, 4]},
            lambda x: (
                x * np.array([1, 2, 3, 4]).reshape(4, 1, 1) / 0.5
                + np.array([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)
            ),
        ),
    ],
)
def test_decoding_undoes_the_scaling_as_diffusers_does(config: dict, unscaled: object) -> None:
    latents, decoder = rand(0, 2, 4, 2, 3) / 4, _Decoder()
    images = np.concatenate(list(decode_latents(decoder, {**VAE_CONFIG, **config}, latents, chunk=1)))
    wanted = unscaled(latents)  # type: ignore[operator]
    np.testing.assert_allclose(np.concatenate(decoder.seen), wanted, rtol=1e-6, atol=1e-6)
    assert images.dtype == np.float32
    assert images.shape == (2, 16, 24, 3)
    assert all(len(seen) == 1 for seen in decoder.seen), "one image at a time"
    first_pixels = (wanted[:, :3, 0, 0] / 2 + 0.5).clip(0, 1)
    np.testing.assert_allclose(images[:, 0, 0], first_pixels, rtol=1e-5, atol=1e-6)


def test_a_decoder_that_overflows_is_named() -> None:
    latents = np.full((1, 4, 1, 1), np.inf, np.float32)
    with pytest.raises(WorkError, match="decoded image is not finite: this VAE overflows"):
        list(decode_latents(_Decoder(), VAE_CONFIG, latents, chunk=1))


def test_pil_images_equal_diffusers() -> None:
    images = rand(1, 2, 8, 8, 3, kind="uniform")
    got = to_pil(images)
    wanted = VaeImageProcessor.numpy_to_pil(images)
    assert [image.tobytes() for image in got] == [image.tobytes() for image in wanted]
    assert got[0].mode == "RGB"
