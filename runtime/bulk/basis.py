"""The basis of jobs, to which their arguments are applied: the bundle, and the files that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from controlnext.bundle.files import sha256
from controlnext.runtime.bulk.jobs import Job, matches
from controlnext.runtime.media.recipe import InputFile, portable_name

INPUTS = ("image", "mask_image", "control_image", "control_images", "ip_adapter_image", "lora")
"""The arguments that are paths of files. A clip's frames may be in a directory; LoRAs are paths with
scales."""


def with_basis(jobs: Iterable[Job], root: Path, bundle: str) -> list[Job]:
    """Return the jobs with the checksum of all that makes their images besides their arguments.

    Args:
        jobs: as they were read.
        root: the directory to which their paths are relative.
        bundle: checksum of the bundle's manifest.
    """
    # many jobs may have the same control image
    checksum = cache(_checksum)

    def basis(job: Job) -> str:
        content = "\n".join([bundle, *map(checksum, input_files(job, root))])
        return hashlib.sha256(content.encode()).hexdigest()

    return [replace(job, basis=basis(job)) for job in jobs]


def input_files(job: Job, root: Path) -> Iterator[Path]:
    """Yield the files that a job reads, whether they are there or not."""
    for name in INPUTS:
        yield from _paths(job.arguments.get(name), root)


def files_of(job: Job, name: str, root: Path) -> Iterator[InputFile]:
    """Yield the files that an argument of a job names, as recipes have them."""
    for path in _paths(job.arguments.get(name), root):
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        yield InputFile(portable_name(inside), _checksum(path))


def _paths(value: Any, root: Path) -> Iterator[Path]:
    """Yield the files that the value of an argument names, those of directories and patterns too."""
    if isinstance(value, (list, dict)):
        for one in value:
            yield from _paths(one, root)
    elif value and isinstance(value, str):
        path = root / value
        yield from _listed(path) or matches(value, root) or [path]


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (OSError, ValueError):
        return []


def _checksum(path: Path) -> str:
    """Return that of a file's content; of what cannot be read its name, and the job will tell why."""
    try:
        return sha256(path) if path.is_file() else path.name
    except (OSError, ValueError):
        return path.name
