"""The settings of the server: its limits and its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlnext.errors import InputError
from controlnext.regular import read_small
from controlnext.runtime.limits import RequestLimits
from controlnext.runtime.loras.folder import lora_files
from controlnext.runtime.request import is_finite

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class ServerSettings(RequestLimits):
    """The limits of the server, and its keys.

    Args:
        max_body: largest body of a request in bytes.
        max_frames: largest number of frames of a clip.
        memory: GiB for the loaded bundles together; None: no limit.
        grace: seconds that running requests get to finish once the server has to stop.
        loras: directory of the LoRAs that requests may choose by name; None: none.
        metadata: whether images may have their arguments in their files.
        api_keys: the keys of which a request needs one; none: no key is needed.

    Raises:
        InputError: a value that is not accepted.
    """

    max_body: int = 32 * MIB
    max_frames: int = 128
    memory: float | None = None
    grace: float = 30.0
    loras: str | None = None
    metadata: bool = True
    api_keys: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least({"max_body": 1, "max_frames": 1})
        if self.memory is not None and not (is_finite(self.memory) and self.memory > 0):
            raise InputError(
                f"memory is {self.memory!r}; it must be a positive number of GiB", argument="memory"
            )
        if not is_finite(self.grace) or self.grace < 0:
            raise InputError(
                f"grace is {self.grace!r}; it must be a finite number of seconds of at least 0",
                argument="grace",
            )
        if self.loras is not None:
            # a directory without any is refused before the first request
            lora_files(self.loras)
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


def read_keys(api_keys: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line; empty lines and those that begin with # are left out.

    Raises :class:`InputError` for a file that cannot be read or has no key.
    """
    try:
        lines = [line.strip() for line in read_small(api_keys).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InputError(
            f"cannot read {api_keys}: {reason}; give `api_keys` a text file with one key a line",
            argument="api_keys",
        ) from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(
            f"{api_keys} has no key; write one a line, or leave `api_keys` out to require none",
            argument="api_keys",
        )
    return keys


def check_size(size: tuple[int, int], settings: ServerSettings, given: str) -> None:
    """Raise :class:`InputError` for a result whose width or height is more than the server allows."""
    if max(size) > settings.max_size:
        raise InputError(
            f"{given}; this server takes at most {settings.max_size} in width and height", argument="size"
        )
