"""The plan of an export, for ``export --dry-run``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlnext import processor
from controlnext.bundle.files import MANIFEST, check_place
from controlnext.cli.console import print_json, print_table, progress
from controlnext.cli.sources import Sources
from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.types import COMPUTES, Precision

if TYPE_CHECKING:
    from controlnext.export.estimate import Estimate
    from controlnext.weights.wanted import Wanted

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
FREE, REPLACED = "free", "a bundle, which is replaced"
PUBLISHED, OWN = "the published architecture", "the weights themselves"


class ExportPlan(msgspec.Struct):
    """The plan of an export. Sizes are in bytes, those of disk and memory are estimates.

    ``place``: what is where the bundle is written: one of :data:`FREE` and :data:`REPLACED`, or the problem.
    ``read``, ``fetch``: what is on this machine, and what is not; files of unknown size are left out.
    ``basis``: what the estimates are from. ``cache_free``, ``disk_free``: room where files of the hub and the
    bundle are written; ``usable_memory``: of this process, None where it is unknown.
    """

    bundle: str
    place: str
    family: str
    variant: str
    precision: str
    compared: bool
    engines: list[str]
    sources: list[Wanted]
    read: int
    fetch: int
    cache: str
    cache_free: int
    basis: str
    estimate: Estimate
    memory: int
    disk_free: int
    usable_memory: int | None


def make_export_plan(
    sources: Sources,
    family: Family,
    variant: str,
    clip_skip: int,
    precision: Precision,
    compute: str,
    output: Path,
    *,
    force: bool,
    compare: bool,
    engines: Sequence[str],
    quiet: bool,
) -> ExportPlan:
    """Return the plan of an export to ``output``; nothing is downloaded or written.

    ``force``: a bundle that is there is replaced; ``compare``: it is compared with PyTorch; ``engines``:
    backends that engines are built for. If all files are on this machine, they are opened and checked, else
    estimates are for the family as published. Raises :class:`~controlnext.errors.ControlNeXtError` for files
    that cannot be used or found.
    """
    from controlnext.export.estimate import estimate
    from controlnext.weights.hub import cache_directory, without_bars

    with progress(quiet) as report, without_bars():
        report("looking for the files", 0.0)
        # without a control nothing is asked for: the error comes from loading
        wanted = sources.wanted(family) if sources.control or sources.random_weights is not None else []
        absent = [file for one in wanted for file in one.files if not file.here]
        report("reading shapes", 0.5)
        load = sources.published if absent else sources.load
        checkpoint = load(family, variant, clip_skip)
        plain = next(one for one in COMPUTES if one == compute)
        found = estimate(checkpoint, precision, plain, compare=compare)
    here = [file for one in wanted for file in one.files if file.here]
    cache = cache_directory()
    return ExportPlan(
        bundle=str(output),
        place=_place(output, force),
        family=family.name,
        variant=variant if absent else checkpoint.variant.name,
        precision=precision,
        compared=compare,
        engines=list(engines),
        sources=wanted,
        read=sum(file.bytes or 0 for file in here),
        fetch=sum(file.bytes or 0 for file in absent),
        cache=str(cache),
        cache_free=_free(cache),
        basis=PUBLISHED if absent or checkpoint.random else OWN,
        estimate=found,
        memory=found.memory,
        disk_free=_free(output),
        usable_memory=processor.usable_memory(),
    )


def check_output(output: Path, force: bool) -> None:
    """Raise :class:`InputError` unless a bundle can be written to ``output``; change nothing."""
    check_place(output, force)
    there = next(parent for parent in output.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write to {output}: {there} is not a directory that may be written; give `output` a"
            " writable path",
            argument="output",
        )


def _place(output: Path, force: bool) -> str:
    try:
        check_output(output, force)
    except InputError as error:
        return str(error)
    return REPLACED if (output / MANIFEST).exists() else FREE


def _free(path: Path) -> int:
    """Return the free bytes of the disk that would hold ``path``."""
    path = path.absolute()
    there = next(one for one in (path, *path.parents) if one.is_dir())
    return shutil.disk_usage(there).free


def print_export_plan(plan: ExportPlan, as_json: bool) -> None:
    """Print the plan on stdout."""
    if as_json:
        print_json(msgspec.to_builtins(plan))
        return
    print(f"{plan.bundle}: {plan.family}, variant {plan.variant}, {plan.precision}")
    rows = [row for one in plan.sources for row in _rows(one)]
    print_table("Files", ("for", "file", "size", ""), rows)
    for problem in dict.fromkeys(one.problem for one in plan.sources if one.problem):
        print(f"{problem}; the files of an earlier download are listed")
    print(f"To read: {_size(plan.read)} on this machine")
    if plan.fetch or any(not file.here for one in plan.sources for file in one.files):
        print(f"To fetch: {_size(plan.fetch)} into {plan.cache}, where {_size(plan.cache_free)} are free")
    graphs = [
        (graph.name, graph.precision, f"{graph.parameters / 1e6:,.1f} M", _size(graph.bytes))
        for graph in plan.estimate.graphs
    ]
    print_table(f"Graphs, by {plan.basis}", ("graph", "precision", "parameters", "size"), graphs)
    if plan.basis == PUBLISHED and any(one.argument == "vae" for one in plan.sources):
        print("The precision of the VAE's graphs depends on the config.json of --vae, which is not here yet")
    # what is wrong with it is the error of the command
    told = plan.place if plan.place in (FREE, REPLACED) else "cannot be written: the error follows"
    print(f"Output: {plan.bundle} ({told})")
    work = f", {_size(plan.estimate.disk_at_work)} while it is made"
    work = work if plan.estimate.disk_at_work > plan.estimate.disk else ""
    print(f"Disk: about {_size(plan.estimate.disk)}{work}; {_size(plan.disk_free)} are free")
    if plan.engines:
        print(f"Besides, engines for {', '.join(plan.engines)}, of about the size of the graphs")
    memory = "" if plan.usable_memory is None else f"; this machine has {_size(plan.usable_memory)}"
    stages = ", ".join(f"{name} {_size(size)}" for name, size in plan.estimate.stages.items())
    print(f"Memory: about {_size(plan.memory)} ({stages}){memory}")
    for warning in _warnings(plan):
        print(f"Warning: {warning}")


def _warnings(plan: ExportPlan) -> list[str]:
    found = []
    if plan.fetch > plan.cache_free:
        found.append("the files do not fit on the disk of the cache; make room, or set HF_HOME")
    if plan.estimate.disk_at_work > plan.disk_free:
        found.append("the bundle does not fit on the disk; make room, or give another --output")
    if plan.usable_memory is not None and plan.memory > plan.usable_memory:
        fix = "; --no-verify needs less" if plan.compared else ""
        found.append(f"the memory may not suffice{fix}")
    return found


def _rows(one: Wanted) -> list[tuple[str, ...]]:
    """Return a row of where the files come from, and one of each file."""
    option = f"--{one.argument.replace('_', '-')}"
    origin = one.given + (f" ({one.revision[:8]})" if one.revision else "")
    files = [
        ("", f"  {file.name}", _size(file.bytes), "here" if file.here else "to fetch") for file in one.files
    ]
    return [(option, origin, "", ""), *files]


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    unit, name = next((one for one in _UNITS if size >= one[0]), _UNITS[-1])
    return f"{size / unit:,.1f} {name}"
