"""Control images made of ordinary ones."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError, MissingDependencyError
from controlnext.runtime import preprocess as package
from controlnext.runtime.preprocess import PREPROCESSORS, Preprocessor, make_preprocessor, preprocess


def _photo(low: int, high: int) -> Image.Image:
    rng = np.random.RandomState(0)
    coarse = rng.randint(low, high, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("low", "high"), [(0, 60), (60, 200), (200, 255)])
def test_canny_takes_its_thresholds_from_the_median(low: int, high: int) -> None:
    image = _photo(low, high)
    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    median = np.median(grey)
    wanted = cv2.Canny(grey, int(0.67 * median), min(255, int(1.33 * median)))
    got = preprocess("canny", image)
    assert got.mode == "RGB"
    assert got.size == image.size
    np.testing.assert_array_equal(np.asarray(got), np.stack([wanted] * 3, axis=-1))


def test_canny_finds_an_outline() -> None:
    """A disc gives a closed ring: edges on its rim, none inside or outside."""
    y, x = np.mgrid[:64, :64] - 32
    distance = np.hypot(y, x)
    disc = np.where(distance < 20, 200, 90).astype(np.uint8)
    edges = np.asarray(preprocess("canny", Image.fromarray(disc)))[..., 0] > 0
    assert edges.sum() > 80
    assert np.abs(distance[edges] - 20).max() < 2


def test_unknown_preprocessor() -> None:
    with pytest.raises(InputError, match="unknown preprocessor 'edges'; accepted: canny, depth"):
        preprocess("edges", _photo(0, 255))


def test_missing_opencv_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "controlnext\[preprocess\]"'):
        preprocess("canny", _photo(0, 255))


class _Toy(Preprocessor):
    """Adds what its weights say, once or several times."""

    def __init__(self, weights: str | Path, times: int = 1) -> None:
        self.shift: int | None = times * int(Path(weights).read_text())

    def process(self, image: Image.Image) -> Image.Image:
        assert image.mode == "RGB"
        shift = self.shift
        assert shift is not None
        return image.point(lambda level: level + shift)

    def close(self) -> None:
        self.shift = None


def test_a_preprocessor_is_a_class_and_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights, an option and something to close."""
    (tmp_path / "weights").write_text("20")
    monkeypatch.setattr(package, "PREPROCESSORS", {**PREPROCESSORS, "toy": _Toy})
    with make_preprocessor("toy", weights=tmp_path / "weights", times=2) as toy:
        assert np.unique(np.asarray(toy(Image.new("L", (4, 4), 100)))) == 140
        assert isinstance(toy, _Toy)
    assert toy.shift is None
    with pytest.raises(
        InputError, match="'toy' has no option size; accepted: weights, times; remove the others"
    ):
        make_preprocessor("toy", size=3)
    with pytest.raises(InputError, match="'canny' has no option times; accepted: none"):
        make_preprocessor("canny", times=3)
