"""What is fuzzed: one file a kind of input, registered here."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets.bundles import Bundles
from fuzz.targets.calibrations import Calibrations
from fuzz.targets.clips import Clips
from fuzz.targets.images import Images
from fuzz.targets.jobs import Jobs
from fuzz.targets.requests import Requests

_ALL: tuple[Target, ...] = (
    Bundles(),
    Images(),
    Clips(),
    Jobs(),
    Calibrations(),
    Requests(),
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
"""The targets by name."""
