"""What every preprocessor is: it makes control images out of ordinary ones."""

from __future__ import annotations

from abc import abstractmethod

from PIL import Image

from controlnext.closeable import Closeable
from controlnext.image_input import ImageReader


class Preprocessor(Closeable):
    """Makes control images. A context manager: leaving it closes it.

    Options are keyword arguments of the constructor. Weights are such an option, the path of a file or
    folder: they are read once, and :meth:`close` gives back what they take.
    """

    def __call__(self, image: object, reader: ImageReader | None = None) -> Image.Image:
        """The control image of ``image``, as ``reader`` (a new one) reads it: mode RGB.

        Raises :class:`~controlnext.errors.InputError` where it is no image.
        """
        return self.process((reader or ImageReader()).read_rgb(image))

    @abstractmethod
    def process(self, image: Image.Image) -> Image.Image:
        """The control image of an image; both of mode RGB."""

    def close(self) -> None:
        """Give back the memory; a preprocessor without weights has none to give."""
