"""The base class of preprocessors, which make control images from ordinary ones."""

from __future__ import annotations

from abc import abstractmethod

from PIL import Image

from controlnext.closeable import Closeable
from controlnext.image_input import ImageReader


class Preprocessor(Closeable):
    """A maker of control images. A context manager: leaving it closes it.

    Options are keyword arguments of the constructor. Weights are such an option, the path of a file or
    directory: they are read once, and :meth:`close` releases them.
    """

    def __call__(self, image: object, reader: ImageReader | None = None) -> Image.Image:
        """Return the control image of ``image`` in mode RGB; ``reader`` (default: a new one) reads it.

        Raises :class:`~controlnext.errors.InputError` if it is not an image.
        """
        return self.process((reader or ImageReader()).read_rgb(image))

    @abstractmethod
    def process(self, image: Image.Image) -> Image.Image:
        """Return the control image of an image; both in mode RGB."""

    def close(self) -> None:
        """Release resources; a preprocessor without weights has none."""
