"""Results of benchmarks that nobody ran."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlnext.bench.hardware import find_hardware
from controlnext.bench.messages import Work
from controlnext.bench.results import Measurement, Results, summarize

SIZE = Work(height=512, width=512)


def measured(target: str, measure: str, *rounds: float, work: Work = SIZE) -> Measurement:
    """Make a measurement of one or several rounds."""
    return summarize(target, measure, work, [[{"denoiser": one, "sampler": 0.0}] for one in rounds])


def made_up(
    *found: Measurement, family: str = "sd15", size: int = 0, instructions: Sequence[str] = ()
) -> Results:
    """Make results of these measurements, of a processor with ``instructions``."""
    hardware = msgspec.structs.replace(find_hardware(), instructions=list(instructions))
    return Results(hardware, {}, [], family, size, list(found), [], {}, [])
