"""The processor: its instruction sets, and the cores and the memory that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CPUS, _CONTROL_GROUPS = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_DESCRIPTION = Path("/proc/cpuinfo")


def instruction_sets() -> frozenset[str]:
    """Return the instruction sets by the names of Linux (``avx512f``, ``asimd``); none on other systems."""
    described = facts()
    return frozenset(described.get("flags", described.get("Features", "")).split())


def facts() -> dict[str, str]:
    """Return the entries of /proc/cpuinfo for the first processor; none on other systems than Linux."""
    try:
        first = _DESCRIPTION.read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def usable_cores() -> int:
    """Return the number of physical cores for this process: the cores in its affinity mask, limited by the
    processor time of its container (control groups, version 1 or 2).

    More threads than that wait for each other.
    """
    numbers = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(number) for number in numbers})
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _siblings(number: int) -> str:
    """Return the processors that share a core with processor ``number``; only itself if unknown."""
    try:
        return (_CPUS / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def usable_memory() -> int | None:
    """Return the bytes of memory for this process: the machine's, limited by its container; None where the
    system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *_memory_limits()])


def _quotas() -> Iterator[float]:
    """Yield the processor limit, in cores, of every control group that limits this process."""
    for directory in _groups("cpu"):
        quota = _quota(directory)
        if quota is not None:
            yield quota


def _memory_limits() -> Iterator[int]:
    """Yield the memory limits in ``memory.max`` (version 2) or ``memory.limit_in_bytes`` (1)."""
    for directory in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                yield int((directory / name).read_text())


def _groups(controller: str) -> Iterator[Path]:
    """Yield the directory of every control group of this process that may have limits of ``controller``."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / controllers if controllers else _CONTROL_GROUPS
        inside = root / path.lstrip("/")
        # in a container the path is the host's, and the files are at the root
        for directory in (inside, *inside.parents):
            yield directory
            if directory == root:
                break


def _quota(directory: Path) -> float | None:
    """Return the limit in ``cpu.max`` (version 2) or ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (1)."""
    try:
        if (directory / "cpu.max").is_file():
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = (
                (directory / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        limited = quota != "max" and int(quota) > 0 and int(period) > 0
        return int(quota) / int(period) if limited else None
    except (OSError, ValueError):
        return None
