"""Unfinished images: the steps after which they are taken."""

from __future__ import annotations


def partial_steps(total: int, count: int) -> dict[int, int]:
    """Return the indices of the steps after which the ``count`` unfinished images are taken, with the number
    of each: spread evenly over ``total`` steps, the last of which makes the finished one."""
    count = min(count, total - 1)
    return {total * number // (count + 1) - 1: number - 1 for number in range(1, count + 1)}
