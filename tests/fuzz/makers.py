"""Makers of odd files by name, for changes."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.odd_clips import clip
from fuzz.odd_files import IMAGES

MAKERS: dict[str, Callable[..., bytes]] = {**IMAGES, "clip": clip}
"""The makers; each takes options that JSON can have."""
