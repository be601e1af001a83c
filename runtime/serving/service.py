"""The models, the limits and the profiles of the bundles, which all routes share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError
from controlnext.families import Family, get_family
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.guidance import is_guided
from controlnext.runtime.serving.loading import ServedBundle
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.settings import ServerSettings
from controlnext.tensor_spec import control_inputs

_LONGEST_WAIT = 600
_SHARE = 0.3
"""Weight of the last pause between two results in their mean."""


class Pace:
    """How fast the requests of one bundle are done, to tell when a place in its queue is free."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._last: float | None = None

    def done(self, batcher: Batcher) -> None:
        """Take note of a result. Pauses in which nothing waited say nothing about the speed."""
        now = time.monotonic()
        if self._last is not None:
            pause = now - self._last
            self._mean = _SHARE * pause + (1 - _SHARE) * self._mean if self._mean else pause
        self._last = now if batcher.waiting else None

    def seconds(self, waiting: int) -> int:
        """Return the seconds, at least one, after which those that wait now have begun."""
        return max(1, min(_LONGEST_WAIT, math.ceil(self._mean * waiting)))


@dataclass(frozen=True)
class Profile:
    """A served bundle: what a client may want to know of it, and its pace."""

    bundle: ServedBundle
    manifest: Manifest
    family: Family
    pace: Pace

    @classmethod
    def of(cls, bundle: ServedBundle) -> Profile:
        """Return the profile of a bundle, from its manifest."""
        manifest = read_manifest(bundle.path)
        return cls(bundle, manifest, get_family(manifest.family), Pace())

    @property
    def controls(self) -> int:
        """The number of controls."""
        return len(control_inputs(self._inputs))

    @property
    def _inputs(self) -> list[str]:
        return [spec.name for spec in self.manifest.graphs[self.family.denoiser].inputs]

    def rows(self, images: int, guidance_scale: float | None) -> int:
        """Return the rows of a step of so many images, the first steps' if guidance ends before the run."""
        scale = self.family.default_guidance if guidance_scale is None else guidance_scale
        return 2 * images if is_guided(scale, self._inputs) else images

    def facts(self) -> dict[str, Any]:
        """Return the entries of the list of models that are this toolkit's own."""
        made_for = self.family.made_for(self.manifest.configs[self.family.denoiser])
        return {
            "task": self.bundle.task,
            "family": self.family.name,
            "samplers": list(self.family.samplers),
            "default_steps": self.family.default_steps,
            "default_guidance": self.family.default_guidance,
            "controls": self.controls,
            "size": f"{made_for[1]}x{made_for[0]}" if made_for else None,
        }


class Service:
    """The models with their profiles, the settings and the metrics of one application."""

    def __init__(self, models: Models, settings: ServerSettings, metrics: Metrics) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.profiles: Mapping[str, Profile] = {
            name: Profile.of(models.describe(name)) for name in models.names()
        }

    def choose(self, model: str | None, task: str) -> Profile:
        """Return the bundle that a request is for: the named one, or the only one of its task.

        Raises :class:`UnknownModelError` for a name that is not served, and :class:`InputError` for a bundle
        of another task or a choice that is left open.
        """
        if model is not None:
            self.models.describe(model)
            profile = self.profiles[model]
            if profile.bundle.task != task:
                raise InputError(
                    f"the model {model} makes {_RESULTS[profile.bundle.task]}, not {_RESULTS[task]};"
                    f" send this to {_ROUTES[profile.bundle.task]}",
                    argument="model",
                )
            return profile
        fitting = [profile for profile in self.profiles.values() if profile.bundle.task == task]
        if len(fitting) == 1:
            return fitting[0]
        names = ", ".join(profile.bundle.name for profile in fitting)
        problem = f"model is missing; give one of {names}" if names else f"no model makes {_RESULTS[task]}"
        raise InputError(problem, argument="model")


_RESULTS = {"image": "images", "video": "clips"}
_ROUTES = {"image": "/v1/images/generations", "video": "/v1/videos"}
