"""Engines written as they are made: never a second time in memory."""

from __future__ import annotations

from typing import Any, BinaryIO


def make_writer(library: Any, file: BinaryIO) -> Any:
    """An ``IStreamWriter`` of ``library`` into ``file``; ``error`` is what writing met, or None."""

    class Writer(library.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                # no exception may pass through TensorRT
                self.error = error
                return 0

    return Writer()
