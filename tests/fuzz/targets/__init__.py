"""What is fuzzed: one file a kind of input, registered here."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets import (
    bundles,
    calibrations,
    checkpoints,
    clips,
    engines,
    images,
    jobs,
    loras,
    recipes,
    requests,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *bundles.TARGETS,
        *checkpoints.TARGETS,
        *engines.TARGETS,
        *loras.TARGETS,
        *images.TARGETS,
        *recipes.TARGETS,
        *clips.TARGETS,
        *jobs.TARGETS,
        *calibrations.TARGETS,
        *requests.TARGETS,
    )
}
"""The targets by name."""
