"""What is drawn of keypoints: colours, widths and dimming as in ControlNeXt's published clips."""

from __future__ import annotations

import cv2
import matplotlib.colors
import numpy as np
import pytest

from controlnext.runtime.preprocess.alignment import fit_to_reference, moved
from controlnext.runtime.preprocess.drawing import draw_pose
from controlnext.runtime.preprocess.keypoints import Pose

SIDE = 2160
"""Of an image that is drawn in its own size."""
LIMBS = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18"
"""By OpenPose's numbers from 1, in the order of their colours."""
COLOURS = (
    "0000ff 0055ff 00aaff 00ffff 00ffaa 00ff55 00ff00 55ff00 aaff00 ffff00 ffaa00 ff5500 ff0000 ff0055"
    " ff00aa ff00ff aa00ff 5500ff"
)


def rgb(text: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(text)))


def nobody() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((134, 2)), np.zeros(134)


def drawn(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    pose = Pose(np.float32(points[None] / SIDE), np.float32(scores[None]))
    return draw_pose(cv2, pose, SIDE, SIDE).astype(int)


def test_joints() -> None:
    """Dimmed by their scores; one that is not sure is left out."""
    points, scores = nobody()
    # on a circle: no limb passes through a joint that is not its own
    angle = 2 * np.pi * np.arange(18) / 18
    points[:18] = SIDE / 2 + 900 * np.stack([np.cos(angle), 0.83 * np.sin(angle)], axis=-1)
    scores[:18], scores[4] = 0.8, 0.29
    got = drawn(points, scores)
    for number, colour in enumerate(COLOURS.split()):
        x, y = points[number].astype(int)
        wanted = np.zeros(3) if number == 4 else 0.8 * rgb(colour)
        assert np.abs(got[y, x] - wanted).max() <= 1, number


def test_limbs() -> None:
    """Ellipses at 0.6 of their colours, dimmed by both scores, with the joints over their ends."""
    for limb, colour in zip(LIMBS.split(), COLOURS.split(), strict=False):
        points, scores = nobody()
        ends = [int(part) - 1 for part in limb.split("-")]
        points[ends], scores[ends] = [(400.5, 300.5), (800.5, 600.5)], [0.9, 0.5]
        got = drawn(points, scores)
        wanted = 0.6 * np.floor(0.45 * rgb(colour))
        assert np.abs(got[450, 600] - wanted).max() <= 1, limb
        # an ellipse with the axes 250 and 4, and two dots of radius 4
        assert 250 * 4 * np.pi * 0.8 < got.any(axis=-1).sum() < 250 * 4 * np.pi * 1.3
    scores[ends[1]] = 0.29
    assert not drawn(points, scores)[450, 600].any()


def test_hands() -> None:
    """Red joints; bones in the hues of a ring, their levels the product of two scores."""
    points, scores = nobody()
    points[92:113] = [(100.5 + 80 * (number % 7), 100.5 + 90 * (number // 7)) for number in range(21)]
    scores[92:113] = 0.5
    got = drawn(points, scores)
    assert (got[100, 100] == (127, 0, 0)).all()
    # 8-9 would be of two fingers; 5-6 is one of the second's: the sixth of twenty
    middle = points[92 + 5 : 92 + 7].mean(axis=0).astype(int)
    hue = matplotlib.colors.hsv_to_rgb([5 / 20, 1.0, 1.0])[::-1]
    assert np.abs(got[middle[1], middle[0]] - 63 * hue).max() <= 1
    assert not drawn(points - 5000, scores).any()


def test_faces() -> None:
    points, scores = nobody()
    points[24:92] = [(50.5 + 20 * number, 700.5) for number in range(68)]
    scores[24:92] = 0.9
    got = drawn(points, scores)
    assert (got[700, 50] == 229).all()
    assert (got[700, 53] == 229).all()
    assert not got[700, 54].any()


def test_several_people_and_small_images() -> None:
    """Both are drawn; the canvas is larger than the image, so that lines get thinner."""
    points, scores = nobody()
    scores[24:92] = 1.0
    people = np.stack([points, points])
    # the canvas is ten times as large, and a pixel what lies about its middle
    people[0, 24:92], people[1, 24:92] = (1804.6 / 4320, 704.6 / 2160), (1414.6 / 4320, 904.6 / 2160)
    got = draw_pose(cv2, Pose(np.float32(people), np.float32([scores, scores])), 216, 432)
    assert got.shape == (216, 432, 3)
    lit = np.argwhere(got[..., 0] > 60)
    assert {tuple(spot) for spot in lit} >= {(70, 180), (90, 141)}
    assert len(lit) < 10


@pytest.mark.parametrize("sizes", [((96, 64), (96, 64)), ((96, 64), (50, 120))])
def test_the_fit_is_least_squares_of_heights(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Over frames of one person, with keypoints that the reference shows."""
    rng = np.random.RandomState(0)
    poses = [Pose(rng.rand(people, 134, 2), np.ones((people, 134))) for people in (1, 2, 1, 0)]
    reference = Pose(rng.rand(1, 134, 2), np.ones((1, 134)))
    reference.scores[0, [8, 3]] = 0.3
    shown = [0, 1, 2, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    (height, width), (target_height, target_width) = sizes
    found = np.stack([poses[0].points[0, shown], poses[2].points[0, shown]])
    wanted = np.stack([reference.points[0, shown]] * 2)
    tall, down = np.polyfit(found[..., 1].ravel(), wanted[..., 1].ravel(), 1)
    wide = tall / (height / width / target_height * target_width)
    right = (wanted[..., 0] - found[..., 0] * wide).mean()
    fitted = fit_to_reference(poses, sizes[0], reference, sizes[1])
    assert fitted is not None
    np.testing.assert_allclose(fitted, [[wide, tall], [right, down]])
    np.testing.assert_allclose(
        moved(poses[0], *fitted).points, poses[0].points * [wide, tall] + [right, down], rtol=1e-5, atol=1e-5
    )
    assert fit_to_reference(poses[1:2], sizes[0], reference, sizes[1]) is None
    assert fit_to_reference(poses, sizes[0], poses[3], sizes[1]) is None
