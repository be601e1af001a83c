"""What is fuzzed: one file a kind of input, registered here."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets import bundles, checkpoints, engines, loras

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *bundles.TARGETS,
        *checkpoints.TARGETS,
        *engines.TARGETS,
        *loras.TARGETS,
    )
}
"""The targets by name."""
