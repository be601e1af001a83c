"""Windows of a long clip: the frames that are denoised together, and which of the results are used."""

from __future__ import annotations

from dataclasses import dataclass

from controlnext.errors import InputError


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` of a clip; the results from frame ``first`` on are used."""

    start: int
    stop: int
    first: int


def clip_windows(frames: int, size: int, overlap: int) -> list[Window]:
    """Return the windows of ``size`` frames, overlapping by ``overlap``, that cover a clip of ``frames``
    frames.

    The last one is shifted back to end with the clip. A later window gets the clip's first control image in
    place of its own first one, so its first frame is not used; that frame must be in the window before.
    Raises :class:`InputError` if no such windows exist.
    """
    if size < 1:
        raise InputError(
            f"frames_per_batch is {size}; must be a positive integer", argument="frames_per_batch"
        )
    if frames <= size:
        return [Window(0, frames, 0)]
    if size == 1:
        raise InputError(
            f"frames_per_batch is 1 for a clip of {frames}: windows overlap; give 2 or more",
            argument="frames_per_batch",
        )
    if not 1 <= overlap < size:
        raise InputError(
            f"overlap is {overlap} for windows of {size} frames over a clip of {frames}; give 1 to"
            f" {size - 1}",
            argument="overlap",
        )
    starts = [*range(0, frames - size, size - overlap), frames - size]
    return [Window(start, start + size, start + 1 if start else 0) for start in starts]
