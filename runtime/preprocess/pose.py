"""Poses of the people in an image: bodies, hands and faces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnext.image_input import ImageReader
from controlnext.optional import extra
from controlnext.runtime.preprocess.alignment import fit_to_reference, moved
from controlnext.runtime.preprocess.base import Preprocessor
from controlnext.runtime.preprocess.drawing import draw_pose
from controlnext.runtime.preprocess.keypoints import KeypointEstimator, Pose
from controlnext.runtime.preprocess.model_files import ModelFile, find_model
from controlnext.runtime.preprocess.people import PersonDetector
from controlnext.types import Progress

logger = logging.getLogger(__name__)

_REPOSITORY = "yzd-v/DWPose"
DETECTOR = ModelFile(_REPOSITORY, "yolox_l.onnx")
ESTIMATOR = ModelFile(_REPOSITORY, "dw-ll_ucoco_384.onnx")


class PosePreprocessor(Preprocessor):
    """Poses drawn as those that ControlNeXt's SVD was trained with.

    ``detector``: a YOLOX detector of people; ``estimator``: one of 133 keypoints with outputs for x and y
    (DWPose, RTMPose). Each is an ONNX file, by its path or at the hub.
    """

    models = ("detector", "estimator")

    def __init__(self, detector: str | Path | None = None, estimator: str | Path | None = None) -> None:
        with extra("preprocess", "OpenCV"):
            import cv2
        self._cv2: Any = cv2
        paths = find_model("detector", detector, DETECTOR), find_model("estimator", estimator, ESTIMATOR)
        self._people: PersonDetector | None = PersonDetector(paths[0], "detector")
        self._keypoints: KeypointEstimator | None = KeypointEstimator(paths[1], "estimator")

    def pose(self, image: Image.Image) -> Pose:
        """Return the keypoints of the people in an image of mode RGB."""
        assert self._people, "the preprocessor is closed"
        assert self._keypoints
        pixels = np.asarray(image)
        return self._keypoints(self._cv2, pixels, self._people(self._cv2, pixels))

    def process(self, image: Image.Image) -> Image.Image:
        """Return the drawn pose of ``image``; without people it is black, with a warning."""
        pose = self.pose(image)
        if not len(pose):
            logger.warning("no person was found in the image: its pose is black")
        return self._drawn(pose, image)

    def clip(
        self,
        frames: Sequence[object],
        reader: ImageReader | None = None,
        *,
        reference: object = None,
        progress: Progress = lambda _stage, _fraction: None,
    ) -> list[Image.Image]:
        """Return the drawn pose of every frame.

        With ``reference`` they are moved onto the first person in this image, and have its size.
        """
        own = reader or ImageReader(one_ground=True)
        poses, images = [], []
        for number, frame in enumerate(frames, 1):
            images.append(own.read_rgb(frame))
            poses.append(self.pose(images[-1]))
            progress("poses", number / len(frames))
        if empty := [str(number) for number, pose in enumerate(poses) if not len(pose)]:
            logger.warning("no person was found in frames %s: their poses are black", ", ".join(empty))
        if reference is None:
            return [self._drawn(pose, image) for pose, image in zip(poses, images, strict=True)]
        target = ImageReader().read_rgb(reference)
        return [self._drawn(pose, target) for pose in self._aligned(poses, images, target)]

    def _aligned(
        self, poses: Sequence[Pose], images: Sequence[Image.Image], target: Image.Image
    ) -> Sequence[Pose]:
        size = images[0].height, images[0].width
        fitted = fit_to_reference(poses, size, self.pose(target), (target.height, target.width))
        if fitted is None:
            logger.warning("the poses are not fitted to the reference image: there is no person to compare")
            return poses
        return [moved(pose, *fitted) for pose in poses]

    def _drawn(self, pose: Pose, image: Image.Image) -> Image.Image:
        return Image.fromarray(draw_pose(self._cv2, pose, image.height, image.width))

    def close(self) -> None:
        """Release the models."""
        self._people = self._keypoints = None
