"""The settings of the server: its limits and its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controlnext.errors import InputError
from controlnext.runtime.request import is_finite, is_integer

MIB, GIB = 1 << 20, 1 << 30

_COUNTS = (
    "max_rows",
    "max_waiting",
    "max_body",
    "max_pixels",
    "max_steps",
    "max_images",
    "max_size",
    "max_frames",
)


@dataclass(frozen=True)
class ServerSettings:
    """The limits of the server, and how it logs.

    Args:
        max_rows: largest number of rows in a run of the denoiser (a guided image is two rows).
        max_waiting: largest number of requests of a bundle that wait; more are refused until later.
        max_body: largest body of a request in bytes.
        max_pixels: largest number of pixels of an image in a request, checked before it is decoded.
        max_steps: largest number of denoising steps of a request.
        max_images: largest number of images of a request.
        max_size: largest height and width of a result in pixels.
        max_frames: largest number of frames of a clip.
        memory: GiB for the loaded bundles together; None: no limit.
        grace: seconds that running requests get to finish once the server has to stop.
        api_keys: the keys of which a request needs one; none: no key is needed.
        log_prompts: whether the log of requests has their prompts.

    Raises:
        InputError: a value that is not accepted.
    """

    max_rows: int = 8
    max_waiting: int = 64
    max_body: int = 32 * MIB
    max_pixels: int = 4096 * 4096
    max_steps: int = 150
    max_images: int = 8
    max_size: int = 2048
    max_frames: int = 128
    memory: float | None = None
    grace: float = 30.0
    api_keys: Sequence[str] = field(default=(), repr=False)
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a positive integer", argument=name)
        if self.memory is not None and not (is_finite(self.memory) and self.memory > 0):
            raise InputError(
                f"memory is {self.memory!r}; it must be a positive number of GiB", argument="memory"
            )
        if not is_finite(self.grace) or self.grace < 0:
            raise InputError(
                f"grace is {self.grace!r}; it must be a number of seconds of at least 0", argument="grace"
            )
        for number, key in enumerate(self.api_keys, start=1):
            # the key itself stays out of messages and logs
            if not key.isascii() or not key.isprintable() or not key or " " in key:
                raise InputError(
                    f"key {number} of api_keys is not accepted; a key has letters, digits and punctuation of"
                    " ASCII, and no space",
                    argument="api_keys",
                )

    @property
    def memory_bytes(self) -> float:
        """The memory for the loaded bundles in bytes, infinite without a limit."""
        return float("inf") if self.memory is None else self.memory * GIB
