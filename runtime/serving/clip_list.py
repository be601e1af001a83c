"""The list of the clips that are there, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from controlnext.runtime.serving.answers import ClipAnswer, ClipsAnswer
from controlnext.runtime.serving.errors import HttpError, shortened

Order = Literal["asc", "desc"]
Listed = tuple[float, ClipAnswer]
"""A clip with the time at which it was asked for, finer than clients see it."""


def page_of(clips: Sequence[Listed], limit: int, after: str | None, order: Order) -> ClipsAnswer:
    """Return at most ``limit`` clips, the oldest first or last, those behind the clip ``after`` alone.

    Raises :class:`HttpError` if there is no clip ``after``, or no more.
    """
    found = [clip for _, clip in sorted(clips, key=_age, reverse=order == "desc")]
    if after is not None:
        names = [clip.id for clip in found]
        if after not in names:
            message = f"there is no clip {shortened(after)}; give the id of one, or leave it out"
            raise HttpError(404, message, param="after", code="not_found")
        found = found[names.index(after) + 1 :]
    page = found[:limit]
    return ClipsAnswer(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > limit,
    )


def _age(listed: Listed) -> tuple[float, str]:
    created, clip = listed
    return created, clip.id
