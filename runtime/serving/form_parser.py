"""The parser of forms: Starlette's, which does not tell of bodies that are cut off, nor of broken text."""

from __future__ import annotations

from starlette.formparsers import MultiPartParser

from controlnext.runtime.serving.errors import HttpError, shortened


class FormParser(MultiPartParser):
    """Parser of a body of multipart/form-data.

    ``ended``: whether the boundary that closes the form was there. Its :meth:`parse` raises
    :class:`HttpError` for text that is not in the charset of the form, UTF-8 unless it says otherwise.
    """

    ended = False

    def on_part_end(self) -> None:
        """Take a part that is complete."""
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode(self._charset)
            except UnicodeDecodeError as error:
                name = shortened(part.field_name)
                message = f"{name} is not text in {self._charset}; send it as UTF-8"
                raise HttpError(400, message, param=name, code="invalid_value") from error
        super().on_part_end()

    def on_end(self) -> None:
        """Take note of the end of the form."""
        self.ended = True
