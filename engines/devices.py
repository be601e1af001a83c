"""Names of devices: ``auto``, ``cpu``, ``cuda``, ``cuda:N``."""

from __future__ import annotations

import re

from controlnext.errors import InputError


def device_index(device: str) -> int | None:
    """Return the number of the GPU in ``"cuda:N"``, 0 for ``"cuda"``; None for ``"auto"`` and ``"cpu"``.

    Raises :class:`~controlnext.errors.InputError` for anything else.
    """
    cuda = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if not cuda and device not in ("auto", "cpu"):
        raise InputError(
            f"unknown device {device!r}; accepted: auto, cpu, cuda, cuda:0, cuda:1, ...", argument="device"
        )
    return int(cuda[1] or 0) if cuda else None


def device_kind(device: str) -> str:
    """Return the device without its number: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises as :func:`device_index` does.
    """
    return device if device_index(device) is None else "cuda"
