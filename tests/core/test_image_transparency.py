"""Transparent images and clips are put on the ground that their content contrasts with, with one warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnext.image_input import ImageReader
from controlnext.runtime.media.video_files import open_clip
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.vae import control_array, read_images
from support.idle_clips import idle_pipeline, no_noise
from support.images import SIZE, drawn, encoded, flat, photo


def _palette(image: Image.Image, mode: str) -> Image.Image:
    """With the alpha of each palette entry, which PIL keeps in three ways."""
    indexed = image.quantize(8)
    if mode == "PA":
        return indexed.convert("PA")
    return Image.open(encoded(indexed, "PNG")) if mode == "P file" else indexed


TRANSPARENT: dict[str, Callable[[Image.Image], object]] = {
    "RGBA": lambda image: image,
    "RGBa": lambda image: image.convert("RGBa"),
    "LA": lambda image: image.convert("LA"),
    "La": lambda image: image.convert("LA").convert("La"),
    **{mode: (lambda image, mode=mode: _palette(image, mode)) for mode in ("P", "P file", "PA")},
    "WebP": lambda image: Image.open(encoded(image, "WEBP", lossless=True)),
    "uint8": np.asarray,
    "uint16": lambda image: np.asarray(image).astype(np.uint16) * 257,
    "floats": lambda image: np.asarray(image) / 255,
}


@pytest.mark.parametrize("ink", [0, 40, 200, 255])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_drawings_on_transparent_ground(kind: str, ink: int, caplog: pytest.LogCaptureFixture) -> None:
    """Dark ones on white, light ones on black, whatever colour hides in what is transparent."""
    image = TRANSPARENT[kind](drawn(ink))
    got = np.asarray(ImageReader("control_image").read_rgb(image)).astype(int)
    assert np.abs(got - flat(ink)).max() <= 1
    (message,) = caplog.messages
    assert message.startswith("control_image is transparent: it was put on a")
    assert ("white" if ink < 128 else "black") in message
    expected = preprocess("canny", Image.fromarray(got.astype(np.uint8)))
    edges = np.asarray(preprocess("canny", image if isinstance(image, Image.Image) else drawn(ink)))
    np.testing.assert_array_equal(edges, np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_colour_that_a_file_names_as_transparent(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    levels = np.zeros((24, 32), np.uint16)
    levels[8:16, 8:16] = 1
    image = Image.fromarray(levels * 65535 if mode == "I;16" else (levels * 255).astype(np.uint8))
    image = image if mode == "I;16" else image.convert(mode)
    white = {"I;16": 65535, "RGB": (255, 255, 255)}.get(mode, 255)
    file = encoded(image, "PNG", transparency=white)
    got = np.asarray(ImageReader().read_rgb(Image.open(file)))
    np.testing.assert_array_equal(got, np.broadcast_to(255 * (levels == 1)[..., None], got.shape))
    assert "white ground" in caplog.text


def test_what_was_converted_to_rgb_is_opaque(caplog: pytest.LogCaptureFixture) -> None:
    """PIL keeps the note of a palette's transparent entry, though it means nothing any more."""
    image = Image.open(encoded(drawn(0).quantize(8, dither=Image.Dither.NONE), "GIF", transparency=0))
    image = image.convert("RGB")
    np.testing.assert_array_equal(np.asarray(ImageReader().read_rgb(image)), np.asarray(image))
    assert caplog.messages == []


def test_colours_are_light_where_one_channel_is() -> None:
    """A skeleton of saturated limbs is drawn on black, as its model was trained."""
    image = drawn(0)
    image.paste((0, 0, 255, 255), (8, 8, 16, 16))
    assert ImageReader().read_rgb(image).getpixel((1, 1)) == (0, 0, 0)


def test_each_image_has_its_own_ground_and_a_clip_has_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning in either case."""
    images = [drawn(255), drawn(0)]
    batch = control_array(read_images(images), 24, 32)
    for got, ink in zip(batch, (255, 0), strict=True):
        np.testing.assert_allclose(got.transpose(1, 2, 0) * 255, flat(ink), atol=1)
    assert len(caplog.messages) == 1
    blank = Image.new("RGBA", SIZE)
    with idle_pipeline(tmp_path / "bundle", no_noise) as pipe:
        controls, _ = pipe._read(pipe.request(image=photo(), control_images=[blank, *images, *images]))
    frames = controls[0].array([0, 1, 2], 24, 32)[0]
    np.testing.assert_array_equal(frames[0], 0)
    np.testing.assert_allclose(frames[1].transpose(1, 2, 0) * 255, flat(255), atol=1)
    np.testing.assert_array_equal(frames[2], 0)
    assert len(caplog.messages) == 2
    assert "the clip in control_images is transparent: it was put on a black" in caplog.messages[1]


def test_frames_of_videos_keep_their_transparency(tmp_path: Path) -> None:
    """A GIF with a ground that is transparent is drawn dark on white, as each of its frames is."""
    first, second = (drawn(0).transpose(Image.Transpose(turn)) for turn in (0, 1))
    first.save(tmp_path / "clip.gif", save_all=True, append_images=[second], disposal=2)
    with open_clip(tmp_path / "clip.gif", lambda image: image) as clip:
        got = np.asarray(ImageReader().read_rgb(clip[0]))
        assert got[1, 1].tolist() == [255, 255, 255]
        assert got[12, 20].tolist() == [0, 0, 0]
