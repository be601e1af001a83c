"""Settings of a benchmark."""

from __future__ import annotations

import msgspec

IMAGE_STEPS = 8
SIZES, BATCHES, FRAMES = (256, 512, 768, 1024), (1, 2, 4), (2, 4, 8)


class Settings(msgspec.Struct, frozen=True):
    """Settings of a benchmark; None stands for a default of the model or the machine.

    ``measures``: names of measurements. ``only``: patterns of names of targets. ``height``, ``width``: pixels
    of all measurements but ``size``. ``steps``, ``sampler``, ``guidance``: of the images of all targets.
    ``cache_interval``, ``guidance_end``, ``tiny_decoder``, ``few_steps``: images that multiply less are
    measured besides, see :func:`~controlnext.bench.choices.ways_of_less`. ``rounds`` of turns of each target,
    with ``runs`` measured runs each. ``sizes``, ``batches``, ``frames``: values of the measurements size,
    batch and frames; the first of ``frames`` holds for the other measurements of clips. ``threads``: number
    of CPU threads of each target. ``optimum``, ``sdcpp``: paths of Python interpreters with optimum's
    exporter and with stable-diffusion.cpp.
    """

    measures: list[str]
    only: list[str]
    height: int | None
    width: int | None
    rounds: int
    runs: int
    device: str
    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None
    cache_interval: int | None = None
    guidance_end: float | None = None
    tiny_decoder: bool = False
    few_steps: int | None = None
    sizes: list[int] | None = None
    batches: list[int] | None = None
    frames: list[int] | None = None
    threads: int | None = None
    optimum: str | None = None
    sdcpp: str | None = None
