"""The bundles that a cluster serves and how, as data for every node and for Serve's configuration file."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from controlnext.engines import check_backend
from controlnext.engines.devices import device_index
from controlnext.errors import InputError
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.ray_cluster import ReplicaRange, own_device, takes_gpu
from controlnext.runtime.serving.loading import Load
from controlnext.runtime.serving.settings import ServerSettings, read_keys


@dataclass(frozen=True)
class ClusterSpec:
    """The bundles that a cluster serves, and how.

    Args:
        bundles: their locations, as every node sees them.
        settings: the limits, without keys.
        api_keys: path of the file of keys, as every node sees it; None: no key is needed.
        replicas: how many copies there are.
        backend, device, offload: as for :meth:`Pipeline.load`; a ``device`` of CUDA takes one GPU a replica,
            whatever its number.
        threads: threads of a replica, and the CPU cores that it takes.
        local: only this machine reaches the proxies.
        log_json, log_prompts: the form of the log, and whether prompts are in it.
        log_level: the level from which on it is written.

    Raises :class:`InputError` for a backend or device of which there is none.
    """

    bundles: list[str]
    settings: ServerSettings = field(default_factory=ServerSettings)
    api_keys: str | None = None
    replicas: ReplicaRange = field(default_factory=ReplicaRange)
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 1
    offload: bool = False
    local: bool = False
    log_json: bool = False
    log_prompts: bool = False
    log_level: int = logging.INFO

    def __post_init__(self) -> None:
        device_index(self.device)
        check_backend(self.backend)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> ClusterSpec:
        """Return the spec of :meth:`fields`; raise :class:`InputError` for a field that is not accepted."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError(
                f"there is no argument {unknown[0]!r}; accepted: {', '.join(cls.__dataclass_fields__)}"
            )
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"the arguments of the application are not accepted: {error}") from error

    def fields(self) -> dict[str, Any]:
        """Return the spec as JSON has it. Keys stay in their file."""
        found = asdict(self)
        found["settings"].pop("api_keys")
        return found

    @property
    def on_gpu(self) -> bool:
        """Whether a replica takes a GPU."""
        return takes_gpu(self.device)

    def load(self) -> Load:
        """Return what opens the pipeline of a bundle in a replica."""
        return partial(
            Pipeline.load,
            backend=self.backend,
            device=own_device(self.device),
            threads=self.threads,
            offload=self.offload,
        )

    def guarded(self) -> ServerSettings:
        """Return the settings with the keys that are in the file."""
        keys = read_keys(Path(self.api_keys)) if self.api_keys else ()
        return replace(self.settings, api_keys=keys)
