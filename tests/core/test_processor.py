"""Runs use as many threads as the process may use cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlnext import processor
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.errors import InputError
from controlnext.processor import usable_cores

GROUPS = {
    # what /proc/self/cgroup says, files below /sys/fs/cgroup, cores of four
    "none": ("0::/\n", {}, 4),
    "version 2": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "version 2, unlimited": ("0::/\n", {"cpu.max": "max 100000\n"}, 4),
    "version 2, a group inside": (
        "0::/a/b\n",
        {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"},
        1,
    ),
    "version 2, below one": ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    "version 1": (
        "3:cpu,cpuacct:/x\n2:memory:/x\n",
        {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, the host's path": (
        "3:cpu:/docker/1\n",
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "version 1, unlimited": (
        "3:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "damaged": ("0::/\n", {"cpu.max": "much\n"}, 4),
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, two of them to a core, and no control group."""
    for number in range(8):
        topology = tmp_path / "cpu" / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(processor, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(processor, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processor, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    return tmp_path


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("mask", "cores"), [({0, 1, 2, 3}, 4), ({1}, 1), ({1, 5}, 1), ({1, 2, 6}, 2)])
def test_the_affinity_mask_counts_by_cores(
    mask: set[int], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: mask)
    assert usable_cores() == cores


@pytest.mark.parametrize("group", GROUPS)
def test_the_container_s_quota_counts(group: str, machine: Path) -> None:
    membership, files, cores = GROUPS[group]
    (machine / "membership").write_text(membership)
    for name, content in files.items():
        path = machine / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert usable_cores() == cores


@pytest.mark.parametrize("threads", [0, -1, 10**6, "2", 1.5, True])
def test_other_numbers_of_threads_are_refused(threads: object) -> None:
    with pytest.raises(InputError, match="it must be an integer from 1 to"):
        OrtBackend("cpu", threads=threads)  # type: ignore[arg-type]


def test_sessions_have_a_thread_for_each_usable_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine has; fewer or more where they are asked for."""
    monkeypatch.setattr(processor, "usable_cores", lambda: 3)
    assert OrtBackend("cpu")._options(packed=True).intra_op_num_threads == 3
    assert OrtBackend("cpu", threads=5)._options(packed=True).intra_op_num_threads == 5


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, 1 << 30),
        ("0::/a\n", {"a/memory.max": "max\n", "memory.max": "1000\n"}, 1000),
        ("3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "5000\n"}, 5000),
        ("3:cpu:/x\n", {"cpu/x/memory.max": "5000\n"}, 1 << 30),
    ],
)
def test_the_container_s_memory_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], expected: int
) -> None:
    (machine / "membership").write_text(membership)
    for name, text in files.items():
        path = machine / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1 << 12, "SC_PHYS_PAGES": 1 << 18}.__getitem__)
    assert processor.usable_memory() == expected
