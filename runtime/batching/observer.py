"""Observers of a batcher, for metrics."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The phases of a request."""

    WAITING = "waiting"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


class Observer:
    """Is told what a batcher does; override the methods, which do nothing here.

    They are called from the batcher's threads: they must return at once and must not raise.
    """

    def ran(self, requests: int, rows: int, seconds: float) -> None:
        """Take note of a run of the denoiser: number of requests and of rows in it, and its duration."""

    def spent(self, phase: Phase, seconds: float) -> None:
        """Take note of the duration of a phase of one request; called when the phase ends."""
