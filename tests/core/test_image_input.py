"""One reading of images: all modes, formats and arrays give the 8-bit RGB image, or are refused."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError
from controlnext.evaluation.calibration_data import read_examples
from controlnext.image_input import ImageReader, open_image
from controlnext.runtime import Pipeline
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.vae import control_array, read_images
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.images import SIZE, drawn, encoded, flat, photo
from support.recipe import drawing

ORIENTATION = 0x0112


def _shallow(mode: str) -> Image.Image:
    """8 bits in a mode that has more: up to 255."""
    return Image.fromarray(_grey().astype(np.uint8)).convert(mode)


def _grey(levels: int = 255) -> np.ndarray:
    """(24, 32): every level of 8 bits, of 0 to ``levels``."""
    return np.arange(24 * 32).reshape(24, 32) % 256 * (levels // 255)


def _deep(mode: str) -> Image.Image:
    if mode == "F":
        return Image.fromarray((_grey() / 255).astype(np.float32))
    if mode == "I":
        return Image.fromarray(_grey(65535).astype(np.int32))
    raw = _grey(65535).astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    return Image.frombytes(mode, SIZE, raw)


GREY = np.repeat(_grey().astype(np.uint8)[..., None], 3, axis=-1)
PHOTO = np.asarray(photo())
LINES = np.asarray(photo().convert("L").convert("RGB"))

MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray, int]] = {
    "1": (lambda: Image.fromarray(_grey() > 127), np.where(GREY > 127, np.uint8(255), np.uint8(0)), 0),
    "L": (lambda: photo().convert("L"), LINES, 0),
    "LA": (lambda: photo().convert("LA"), LINES, 0),
    "La": (lambda: photo().convert("LA").convert("La"), LINES, 0),
    "P": (lambda: Image.fromarray(GREY[..., 0]).convert("P"), GREY, 0),
    "PA": (lambda: Image.fromarray(GREY[..., 0]).convert("P").convert("PA"), GREY, 0),
    "RGB": (photo, PHOTO, 0),
    "RGBA": (lambda: photo().convert("RGBA"), PHOTO, 0),
    "RGBa": (lambda: photo().convert("RGBA").convert("RGBa"), PHOTO, 0),
    "RGBX": (lambda: photo().convert("RGBX"), PHOTO, 0),
    "CMYK": (lambda: photo().convert("CMYK"), PHOTO, 0),
    "YCbCr": (lambda: photo().convert("YCbCr"), PHOTO, 3),
    "HSV": (lambda: photo().convert("HSV"), PHOTO, 6),
    # its blues and greens lie beyond what eight bits of it hold
    "LAB": (lambda: photo().convert("LAB"), PHOTO, 40),
    **{mode: ((lambda mode=mode: _deep(mode)), GREY, 0) for mode in ("I;16", "I;16L", "I;16B", "I", "F")},
}
"""Of every mode of Pillow an image, the same in 8-bit RGB, and by how much the mode itself may change it."""


def test_all_modes_of_pillow_are_tried() -> None:
    """I;16N is one of the two byte orders."""
    assert set(MODES) == set(Image.MODES) - {"I;16N"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_rgb_image(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """For a pipeline, in 8 bits, for a preprocessor; opaque alpha is no matter for a warning."""
    make, wanted, tolerance = MODES[mode]
    image = make()
    assert image.mode == mode
    before = image.tobytes()
    got = np.asarray(ImageReader().read_rgb(image))
    assert np.abs(got.astype(int) - wanted).max() <= tolerance
    array = control_array(read_images(image), *SIZE[::-1])[0].transpose(1, 2, 0)
    np.testing.assert_allclose(array, got.astype(np.float32) / 255, atol=1e-6)
    expected = np.asarray(preprocess("canny", Image.fromarray(got)))
    np.testing.assert_array_equal(np.asarray(preprocess("canny", image)), expected)
    assert image.tobytes() == before, "the user's image is as it was"
    assert caplog.messages == []


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("format", "options", "mode"),
    [
        ("PNG", {}, "RGB"),
        ("PNG", {}, "RGBA"),
        ("PNG", {}, "P"),
        ("PNG", {}, "I;16"),
        ("JPEG", {"quality": 100, "subsampling": 0}, "RGB"),
        ("JPEG", {"quality": 100, "subsampling": 0}, "CMYK"),
        ("WEBP", {"lossless": True}, "RGB"),
        ("TIFF", {}, "RGB"),
        ("TIFF", {"compression": "tiff_lzw"}, "L"),
        ("TIFF", {}, "I;16"),
        ("TIFF", {}, "I;16B"),
        ("TIFF", {}, "I"),
        ("TIFF", {}, "F"),
    ],
)
def test_every_format_and_rotation(
    tmp_path: Path, format: str, options: dict[str, Any], mode: str, orientation: int
) -> None:
    """From the file as from PIL, upright whatever EXIF says, with all the levels of more than 8 bits."""
    make, wanted, _ = MODES[mode]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image"
    make().save(path, format, exif=exif, **options)
    turned = np.rot90(wanted, {1: 0, 3: 2, 6: -1}[orientation])
    with Image.open(path) as image:
        readings = [ImageReader().read_rgb(image), ImageReader().read_rgb(open_image(path))]
        arrays = [control_array(read_images(given), 8, 16) for given in (image, open_image(path))]
    for reading in readings:
        distance = np.abs(np.asarray(reading).astype(int) - turned)
        assert distance.max() <= (8 if format == "JPEG" else 0)
    np.testing.assert_array_equal(*arrays)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_a_tiff_file_may_count_from_white_to_black(tmp_path: Path, mode: str) -> None:
    """Pillow heeds that in files of up to 8 bits."""
    _deep(mode).save(tmp_path / "image.tif", tiffinfo={262: 0})
    got = np.asarray(ImageReader().read_rgb(open_image(tmp_path / "image.tif")))
    np.testing.assert_array_equal(got, 255 - GREY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays(dtype: Any, channels: int) -> None:
    """The range of integers is their type's; floats are in [0, 1]."""
    white = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    array = _grey() / 255 * white
    array = (array.round() if white > 1 else array).astype(dtype)
    if channels:
        array = np.repeat(array[..., None], channels, axis=-1)
    if channels == 4:
        array[..., 3] = white
    np.testing.assert_array_equal(np.asarray(ImageReader().read_rgb(array)), GREY)


def test_boolean_arrays() -> None:
    np.testing.assert_array_equal(np.asarray(ImageReader().read_rgb(GREY > 127)), (GREY > 127) * 255)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (_shallow("I"), r"values up to 255 in a format of 16 or 32 bits: that may be 8 bits"),
        (_shallow("I;16"), r"values up to 255 in .* convert it to 8 bits, or to all 16"),
        (PHOTO.astype(np.uint16), "values up to 255 in a format of 16"),
        (Image.fromarray(np.int32([[-1, 500]])), "values from -1 to 500, where 16 bits have 0 to 65535"),
        (Image.fromarray(np.int32([[0, 65536]])), "values from 0 to 65536, where 16 bits"),
        (_shallow("F"), r"values from .* to 255, where floats are in \[0, 1\]"),
        (np.float32([[0, np.inf]]), "values from 0 to inf"),
        (np.float32([[0, np.nan]]), "values from nan to nan"),
        (Image.fromarray(np.float32([[0, np.nan]])), "values from nan to nan"),
        (np.zeros((4, 4), np.int64), "an array of int64; give a PIL image, or an array"),
        (np.zeros((4, 4), np.complex64), "an array of complex64"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (Image.new("RGB", (0, 4)), "has 0 x 4 pixels"),
        (b"bytes", "of type bytes"),
    ],
)
def test_what_may_mean_two_things_or_none_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ImageReader().read(given)
    assert "\n" not in str(caught.value)


def test_black_is_black_at_any_depth() -> None:
    for image in (Image.new("I", SIZE), Image.new("I;16", SIZE), Image.new("F", SIZE)):
        assert not np.asarray(ImageReader().read_rgb(image)).any()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_damaged_files_are_one_line(tmp_path: Path, format: str) -> None:
    """Cut off, or with bytes that are wrong, they are read or refused: nothing else comes out."""
    content, rng = encoded(photo(), format).getvalue(), np.random.RandomState(0)
    path = tmp_path / "image"
    for length in (0, 10, len(content) // 3, len(content) - 40):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cannot read image .*; give a PNG, JPEG, WebP or TIFF file"):
            open_image(path)
    for _ in range(20):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.randint(0, len(damaged), 4)] = rng.randint(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        with suppress(InputError):
            open_image(path)


def test_a_damaged_file_that_pil_opened_is_one_line() -> None:
    """PIL reads the pixels only when they are asked for."""
    content = encoded(drawing(1, 64, 48), "PNG").getvalue()
    with pytest.raises(InputError, match=r"the image cannot be read \(.*truncated.*\); give a PIL image"):
        ImageReader().read(Image.open(io.BytesIO(content[:-30])))


def test_a_file_with_too_many_pixels_is_one_line(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that Pillow rejects as a decompression bomb."""
    photo().save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] // 3)
    with pytest.raises(InputError, match=r"cannot read image .*768 pixels"):
        open_image(tmp_path / "image.png")
    bundle = write_fake_bundle(tmp_path / "bundle")
    flags = ("--prompt", "a", "--steps", 1, "--output", tmp_path / "out.png")
    assert_refused(cli("run", bundle, "--control-image", tmp_path / "image.png", *flags), "768 pixels")
    # fewer only make it warn of them
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] - 1)
    done = cli("run", bundle, "--control-image", tmp_path / "image.png", *flags)
    assert (done.status, done.err) == (0, "")


def test_calibration_reads_as_everything_does(tmp_path: Path) -> None:
    """TIFF files too, and 16 bits."""
    _deep("I;16").save(tmp_path / "a.tif")
    drawn(0).save(tmp_path / "b.png")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    deep, second = read_examples(tmp_path)
    np.testing.assert_array_equal(np.asarray(deep.image), GREY)
    np.testing.assert_allclose(np.asarray(second.image), flat(0), atol=1)
    _shallow("I;16").save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: the image has values up to 255"):
        read_examples(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")


@pytest.mark.parametrize("kind", ["grey16.png", "float.tif", "turned.jpg", "drawn.png", "palette.png"])
def test_the_command_line_makes_what_the_pipeline_makes(
    cli: Cli, tmp_path: Path, bundle: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the file, of the image that PIL opens and of the 8-bit RGB image."""
    path, output, exif = tmp_path / kind, tmp_path / "out.png", Image.Exif()
    exif[ORIENTATION] = 8
    made: dict[str, tuple[Image.Image, np.ndarray]] = {
        "grey16.png": (_deep("I;16"), GREY),
        "float.tif": (_deep("F"), GREY),
        "turned.jpg": (photo(), None),
        "drawn.png": (drawn(0), flat(0)),
        "palette.png": (drawn(255).quantize(4), flat(255)),
    }
    image, wanted = made[kind]
    image.save(path, exif=exif if kind == "turned.jpg" else Image.Exif())
    if kind == "turned.jpg":
        wanted = np.rot90(np.asarray(Image.open(path)))
    done = cli("run", bundle, "--prompt", "a", "--control-image", path, "--steps", 1, "--output", output)
    assert done.status == 0, done.err
    assert caplog.text.count("is transparent") == (kind in ("drawn.png", "palette.png"))
    with Pipeline.load(bundle) as pipe, Image.open(output) as got:
        for given in (Image.open(path), Image.fromarray(wanted.astype(np.uint8))):
            made_of = pipe("a", control_image=given, num_inference_steps=1).images[0]
            assert np.abs(np.asarray(made_of).astype(int) - np.asarray(got)).max() <= 1
            if given.format:
                np.testing.assert_array_equal(np.asarray(made_of), np.asarray(got))


def test_a_file_for_which_a_program_would_be_run_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow has Ghostscript run what is in an EPS file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.eps")
    (tmp_path / "image.eps").rename(tmp_path / "image.png")
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a program was run"))
    with pytest.raises(InputError, match=r"image\.png: it is not an image in one of these"):
        open_image(tmp_path / "image.png")
