"""``--preprocess`` and ``--preprocessor-model``: which models, and what is made of images and clips."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnext.cli.preprocessors import ControlFiles, opened
from controlnext.errors import InputError
from controlnext.runtime.media.image_files import ImageFiles
from controlnext.runtime.media.video_files import ClipFiles
from controlnext.runtime.preprocess import preprocess
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.runs import run
from support.stand_in_models import write_detector, write_estimator, write_map_model

FRAMES = 3


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    directory = tmp_path / "clip"
    directory.mkdir()
    for number in range(FRAMES):
        Image.new("RGB", (32, 24), (10 * number, 90, 200)).save(directory / f"{number}.png")
    return directory


def told(_stage: str, _fraction: float) -> None:
    """Report nothing."""


def test_one_model_needs_no_name(tmp_path: Path) -> None:
    file = write_map_model(tmp_path / "hed.onnx")
    for given in (str(file), f"weights={file}"):
        with opened("softedge", [given]) as softedge:
            assert softedge is not None


def test_two_models_are_named(tmp_path: Path) -> None:
    detector = write_detector(tmp_path / "detector.onnx", {})
    estimator = write_estimator(tmp_path / "estimator.onnx", np.zeros((133, 2)), np.zeros(133))
    with opened("pose", [f"estimator={estimator}", f"detector={detector}"]) as pose:
        assert pose is not None


@pytest.mark.parametrize(
    ("name", "models", "message"),
    [
        (None, ["hed.onnx"], "--preprocessor-model needs --preprocess"),
        ("canny", ["hed.onnx"], "does not suit --preprocess canny; accepted, each once: none; remove it"),
        ("pose", ["yolox.onnx"], "each once: detector=PATH_OR_ID.*, estimator=PATH_OR_ID"),
        ("depth", ["weights=a", "weights=b"], "--preprocessor-model weights=b does not suit"),
        ("depth", ["weights="], "--preprocessor-model weights= does not suit"),
        ("edges", ["weights=a"], "unknown preprocessor 'edges'; accepted: canny, depth"),
        ("depth", ["/gone.onnx"], "there is no model file /gone.onnx; set `weights`"),
    ],
)
def test_models_that_do_not_suit(name: str | None, models: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(name, models)


def test_a_clip_is_made_before_the_run(clip: Path, tmp_path: Path) -> None:
    """As many frames as the run asks for, with progress; without a preprocessor it is read on demand."""
    steps: list[tuple[str, float]] = []
    with ClipFiles(tmp_path / "out") as files, opened("canny", None) as canny:
        made = ControlFiles(files, canny, lambda *step: steps.append(step))(clip, {"frames": 2})
        assert steps == [("preprocessing", 0.5), ("preprocessing", 1.0)]
        expected = preprocess("canny", Image.open(clip / "1.png"))
        assert np.array_equal(np.asarray(made[1]), np.asarray(expected))
        assert len(made) == 2
        assert len(ControlFiles(files, None, told)(clip, {"frames": 2})) == FRAMES


def test_an_image_is_made(clip: Path, tmp_path: Path) -> None:
    with ImageFiles(tmp_path / "out.png") as files, opened("tile", None) as tile:
        assert ControlFiles(files, tile, told)(clip / "0.png", {}).size == (128, 96)


def test_a_library_that_is_missing_is_not_laid_to_the_image(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outline: Path
) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "cv2", None)
    done = run(cli, bundle, prompt="a", control_image=outline, preprocess="canny", output=tmp_path / "x.png")
    assert_refused(done, "error: OpenCV is not installed", 'run pip install "controlnext[preprocess]"')
