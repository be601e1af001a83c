"""How runs of a family start from an image, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageStart:
    """How a run starts from an image: diffusers' pipelines for it, and how they count its steps.

    ``image_to_image``, ``inpaint``: the pipelines' classes. ``takes_begun``: where ``strength`` times the
    number of steps is not an integer, whether the step that it begins in is taken.
    """

    image_to_image: str
    inpaint: str
    takes_begun: bool = False

    def first_step(self, steps: int, strength: float) -> int:
        """Return the index of the first of ``steps`` that is taken; ``steps`` if none is."""
        if self.takes_begun:
            return int(max(steps - min(steps * strength, steps), 0))
        return max(steps - min(int(steps * strength), steps), 0)
