"""What is fuzzed: one file a kind of input, registered here."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets.bundles import Bundles

TARGETS: dict[str, Target] = {target.name: target for target in (Bundles(),)}
"""The targets by name."""
