"""What is fuzzed: one file a kind of input, registered here."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets.bundles import Bundles
from fuzz.targets.images import Images
from fuzz.targets.jobs import Jobs
from fuzz.targets.requests import Requests

TARGETS: dict[str, Target] = {target.name: target for target in (Bundles(), Images(), Jobs(), Requests())}
"""The targets by name."""
