"""The base class of preprocessors, which make control images from ordinary ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

from PIL import Image

from controlnext.closeable import Closeable
from controlnext.image_input import ImageReader
from controlnext.types import Progress


class Preprocessor(Closeable):
    """A maker of control images. A context manager: leaving it closes it.

    Options are keyword arguments of the constructor. Weights are such an option, the path of a file or
    directory: they are read once, and :meth:`close` releases them.
    """

    models: ClassVar[tuple[str, ...]] = ()
    """The options that name an ONNX file: by its path, or at the hub."""

    def __call__(self, image: object, reader: ImageReader | None = None) -> Image.Image:
        """Return the control image of ``image`` in mode RGB; ``reader`` (default: a new one) reads it.

        Raises :class:`~controlnext.errors.InputError` if it is not an image.
        """
        return self.process((reader or ImageReader()).read_rgb(image))

    def clip(
        self,
        frames: Sequence[object],
        reader: ImageReader | None = None,
        *,
        reference: object = None,  # noqa: ARG002
        progress: Progress = lambda _stage, _fraction: None,
    ) -> list[Image.Image]:
        """Return the control image of every frame; arguments as for one image, all with the same reader.

        ``reference``: the image that the clip is to begin with, for preprocessors that fit the control to it.
        """
        own = reader or ImageReader(one_ground=True)
        made = []
        for number, frame in enumerate(frames, 1):
            made.append(self(frame, own))
            progress("preprocessing", number / len(frames))
        return made

    @abstractmethod
    def process(self, image: Image.Image) -> Image.Image:
        """Return the control image of an image; both in mode RGB."""

    def close(self) -> None:
        """Release resources; a preprocessor without weights has none."""


class MadeOnce(Sequence[Image.Image]):
    """A clip whose frames are made when they are first needed, and kept.

    Attributes:
        fps: frames a second of the source video; None if there is none.
    """

    def __init__(self, clip: Any) -> None:
        self.fps: Fraction | None = clip.fps
        self._clip, self._made = clip, dict[int, Image.Image]()

    def __len__(self) -> int:
        return len(self._clip)

    def __getitem__(self, number: int) -> Image.Image:  # type: ignore[override]
        if number not in self._made:
            self._made[number] = self._clip[number]
        return self._made[number]
