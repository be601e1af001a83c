"""Poses by small models: people, keypoints, and what is drawn of an image and a clip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.preprocess import make_preprocessor
from controlnext.runtime.preprocess.drawing import draw_pose
from controlnext.runtime.preprocess.keypoints import Pose, crop_matrix, decode_simcc, with_neck
from controlnext.runtime.preprocess.people import PersonDetector, decode_boxes, letterbox, suppress
from controlnext.runtime.preprocess.pose import PosePreprocessor
from support.stand_in_models import (
    ESTIMATOR_SIZE,
    KEYPOINTS,
    write_constants,
    write_detector,
    write_estimator,
    write_map_model,
)

WIDTH, HEIGHT = 128, 96
PERSON = (16.0, 20.0, 12.0, 24.0, 0.9, 0.1, 0.1)
"""x, y, width, height in the detector's pixels, half of the image's, and the scores of three classes."""


@pytest.fixture
def places() -> np.ndarray:
    rng = np.random.RandomState(0)
    return rng.randint(2, 2 * np.array(ESTIMATOR_SIZE[::-1]) - 2, (KEYPOINTS, 2)) / 2


@pytest.fixture
def models(tmp_path: Path, places: np.ndarray) -> dict[str, Path]:
    scores = np.linspace(0.9, 0.4, KEYPOINTS)
    return {
        "detector": write_detector(tmp_path / "detector.onnx", {18: PERSON}),
        "estimator": write_estimator(tmp_path / "estimator.onnx", places, scores),
    }


@pytest.fixture
def pose(models: dict[str, Path]) -> Iterator[PosePreprocessor]:
    with make_preprocessor("pose", **models) as made:
        assert isinstance(made, PosePreprocessor)
        yield made


def image(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.RandomState(2).randint(0, 256, (height, width, 3)).astype(np.uint8))


def test_letterbox_keeps_the_ratio() -> None:
    pixels = np.asarray(image())
    padded, ratio = letterbox(cv2, pixels, (64, 64))
    assert (ratio, padded.dtype) == (0.5, np.float32)
    np.testing.assert_array_equal(padded[:48], cv2.resize(pixels, (64, 48)).astype(np.float32))
    assert (padded[48:] == 114).all()


def test_boxes_are_decoded_by_cell_and_stride() -> None:
    """The first cell of each stride, and one in the second row."""
    raw = np.zeros((84, 7), np.float32)
    raw[:, :2], raw[:, 2:4] = 0.5, np.log([2.0, 3.0])
    raw[:, 4:] = 0.5, 0.8, 0.2
    boxes, scores = decode_boxes(raw, (64, 64))
    for cell, stride, x, y in (
        (0, 8, 4, 4),
        (9, 8, 12, 12),
        (64, 16, 8, 8),
        (80, 32, 16, 16),
        (83, 32, 48, 48),
    ):
        wanted = [x - stride, y - 1.5 * stride, x + stride, y + 1.5 * stride]
        np.testing.assert_allclose(boxes[cell], wanted, rtol=1e-6)
    np.testing.assert_allclose(scores, np.broadcast_to([0.4, 0.1], (84, 2)), rtol=1e-6)


def test_overlapping_boxes_are_suppressed_as_by_opencv() -> None:
    """OpenCV's boxes end before the pixel that is their far edge; these include it."""
    rng = np.random.RandomState(3)
    corners = rng.randint(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + rng.randint(5, 50, (200, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(200).astype(np.float32) / 200 + 0.01
    rects = [[int(a), int(b), int(c - a + 1), int(d - b + 1)] for a, b, c, d in boxes]
    wanted = cv2.dnn.NMSBoxes(rects, scores.tolist(), 0.0, 0.45)
    assert suppress(boxes, scores, 0.45) == np.ravel(wanted).tolist()
    assert suppress(boxes[:0], scores[:0], 0.45) == []


def test_people_alone_are_found(tmp_path: Path) -> None:
    """Not other classes, unsure ones, and one that overlaps a surer one; in the image's pixels."""
    found = {
        18: PERSON,
        19: (17.0, 20.0, 12.0, 24.0, 0.8, 0.0, 0.0),
        44: (36.0, 44.0, 10.0, 10.0, 0.2, 0.9, 0.0),
        45: (44.0, 44.0, 10.0, 10.0, 0.29, 0.0, 0.0),
        6: (50.0, 6.0, 8.0, 8.0, 0.95, 0.0, 0.0),
    }
    detect = PersonDetector(write_detector(tmp_path / "detector.onnx", found), "detector")
    boxes = detect(cv2, np.asarray(image()))
    np.testing.assert_allclose(boxes, [[92, 4, 108, 20], [20, 16, 44, 64]], atol=1e-3)


@pytest.mark.parametrize("box", [(20, 16, 44, 64), (5, 30, 120, 60)])
def test_a_crop_is_opencvs_affine_transform(box: tuple[float, ...]) -> None:
    """Of three points: the centre, and the middles of the upper and left edges of the padded box."""
    height, width = ESTIMATOR_SIZE
    left, top, right, bottom = box
    centre = np.array([left + right, top + bottom]) / 2
    wide = max(1.25 * (right - left), 1.25 * (bottom - top) * width / height)
    corners = centre + np.array([[0, 0], [0, -wide / 2 * height / width], [-wide / 2, 0]])
    target = np.array([[width / 2, height / 2], [width / 2, 0], [0, height / 2]])
    wanted = cv2.getAffineTransform(corners.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(crop_matrix(np.array(box), (height, width)), wanted, atol=1e-4)


def test_simcc_is_the_likeliest_bin(places: np.ndarray) -> None:
    height, width = ESTIMATOR_SIZE
    x, y = np.full((KEYPOINTS, 2 * width), 0.1), np.full((KEYPOINTS, 2 * height), 0.05)
    rows = np.arange(KEYPOINTS)
    x[rows, (2 * places[:, 0]).astype(int)], y[rows, (2 * places[:, 1]).astype(int)] = 0.7, 0.6
    y[5] = -1.0
    points, scores = decode_simcc(x, y, ESTIMATOR_SIZE)
    places[5] = -0.5
    np.testing.assert_allclose(points, places)
    np.testing.assert_allclose(scores, np.where(rows == 5, -1.0, 0.6))


def test_the_body_is_in_openposes_order() -> None:
    """Nose, neck, right arm, left arm, right leg, left leg, eyes, ears; feet, face and hands stay behind."""
    points = np.arange(2 * KEYPOINTS, dtype=np.float32).reshape(1, KEYPOINTS, 2)
    scores = np.full((1, KEYPOINTS), 0.9, np.float32)
    scores[0, 5] = 0.3
    got, rated = with_neck(points, scores)
    body = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    for number, keypoint in enumerate(body):
        wanted = points[0, [5, 6]].mean(axis=0) if keypoint is None else points[0, keypoint]
        np.testing.assert_array_equal(got[0, number], wanted)
    np.testing.assert_array_equal(got[0, 18:], points[0, 17:])
    assert rated[0, 1] == 0
    scores[0, 5] = 0.31
    assert with_neck(points, scores)[1][0, 1] == 1


def test_keypoints_are_where_the_crop_had_them(pose: PosePreprocessor, places: np.ndarray) -> None:
    """As fractions of the image: the person's box is 24 x 48 pixels about (32, 40), the crop 60 high."""
    found = pose.pose(image())
    assert found.points.shape == (1, KEYPOINTS + 1, 2)
    scale, centre = ESTIMATOR_SIZE[0] / 60, np.array([32, 40])
    wanted = ((places[17:] - np.array(ESTIMATOR_SIZE[::-1]) / 2) / scale + centre) / (WIDTH, HEIGHT)
    np.testing.assert_allclose(found.points[0, 18:], wanted, atol=1e-5)


def test_an_image_is_its_drawn_pose(pose: PosePreprocessor) -> None:
    found = pose.pose(image())
    got = np.asarray(pose(image()))
    assert np.array_equal(got, draw_pose(cv2, found, HEIGHT, WIDTH))
    assert got.any()


def test_nobody_is_black_with_a_warning(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = write_detector(tmp_path / "nobody.onnx", {})
    with make_preprocessor("pose", **{**models, "detector": nobody}) as pose:
        assert not np.asarray(pose(image())).any()
        assert "no person was found in the image: its pose is black" in caplog.text
        assert not np.asarray(pose.clip([image(), image()], reference=image(64, 48))).any()
    assert "no person was found in frames 0, 1: their poses are black" in caplog.text
    assert "the poses are not fitted to the reference image" in caplog.text


def test_a_clip_reports_its_progress(pose: PosePreprocessor) -> None:
    told: list[tuple[str, float]] = []
    made = pose.clip([image(), image()], progress=lambda *step: told.append(step))
    assert told == [("poses", 0.5), ("poses", 1.0)]
    assert all(np.array_equal(np.asarray(one), np.asarray(pose(image()))) for one in made)


def test_a_clip_is_fitted_to_the_reference(pose: PosePreprocessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses that are those of the reference but for a shift and a factor are drawn as the reference's."""
    wanted = pose.pose(image())
    monkeypatch.setattr(pose, "pose", lambda given: wanted if given.size == (WIDTH, HEIGHT) else other)
    other = Pose(wanted.points * np.float32([0.5, 0.5]) + np.float32(0.1), wanted.scores)
    (made,) = pose.clip([image(2 * WIDTH, 2 * HEIGHT)], reference=image())
    expected = draw_pose(cv2, wanted, HEIGHT, WIDTH).astype(int)
    assert made.size == (WIDTH, HEIGHT)
    assert np.abs(np.asarray(made).astype(int) - expected).mean() < 0.5


def test_models_that_do_not_fit(models: dict[str, Path], tmp_path: Path) -> None:
    map_model: Any = write_map_model(tmp_path / "map.onnx", size=(64, 64))
    with (
        make_preprocessor("pose", **{**models, "detector": map_model}) as pose,
        pytest.raises(InputError, match=r"map\.onnx is not a model for `detector`: its output has shape"),
    ):
        pose(image())
    body = write_constants(
        tmp_path / "body.onnx", {"x": np.zeros((1, 17, 96)), "y": np.zeros((1, 17, 128))}, (64, 48)
    )
    with (
        make_preprocessor("pose", **{**models, "estimator": body}) as pose,
        pytest.raises(InputError, match=r"two, x and y of 133 keypoints, \(1, 133, bins\)") as caught,
    ):
        pose(image())
    assert caught.value.argument == "estimator"
