"""Write engines to a file while they are built, without a copy in memory."""

from __future__ import annotations

from typing import Any, BinaryIO


def make_writer(library: Any, file: BinaryIO) -> Any:
    """Return an ``IStreamWriter`` of ``library`` into ``file``; its ``error`` is that of writing, or None."""

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
