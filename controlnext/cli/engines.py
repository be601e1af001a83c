"""Building engines from options, for ``build`` and ``export --backend``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlnext.bundle.format import graph_files
from controlnext.bundle.manifest import Manifest
from controlnext.cli.option_names import MIB
from controlnext.engines.tensorrt.build import BuildOptions, Built, build_engine
from controlnext.engines.tensorrt.flavors import FLAVORS, Flavor
from controlnext.engines.tensorrt.profile import Range, check_sizes, choose_ranges, parse_range
from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.types import Progress


@dataclass(frozen=True)
class BuildPlan:
    """Engines to build with one library, for shapes in ``ranges``; a range that is not given has a
    default."""

    flavor: Flavor
    ranges: Mapping[str, Range]
    options: BuildOptions

    def build(
        self,
        bundle: Path,
        manifest: Manifest,
        graphs: Sequence[str],
        report: Progress,
        *,
        force: bool = False,
    ) -> list[Built]:
        """Build the engine of each graph.

        Raises as :func:`~controlnext.engines.tensorrt.build.build_engine`.
        """
        ranges = choose_ranges(manifest, self.ranges)
        sizes = [_bytes(manifest, name) for name in graphs]
        built: list[Built] = []
        for index, name in enumerate(graphs):
            before, share = sum(sizes[:index]) / sum(sizes), sizes[index] / sum(sizes)
            built.append(
                build_engine(
                    bundle,
                    manifest,
                    name,
                    self.flavor,
                    ranges,
                    self.options,
                    force=force,
                    report=_part(report, name, before, share),
                )
            )
        return built


def make_plan(
    backends: Collection[str],
    accepted: Sequence[str],
    family: Family,
    sizes: Mapping[str, str | None],
    *,
    optimization_level: int = 3,
    workspace: int | None = None,
    strip_weights: bool = False,
    targets: Sequence[str] = (),
) -> BuildPlan | None:
    """Return the build plan of the options, or None if ``backends`` has neither TensorRT nor TensorRT-RTX.

    ``accepted``: the accepted names of backends. ``sizes``: ranges by name, as text from the command line.
    ``workspace``: in MiB.

    Raises :class:`~controlnext.errors.InputError` for options that contradict each other, the family or the
    library.
    """
    for name in backends:
        if name not in accepted:
            raise InputError(f"unknown backend {name!r}; accepted: {', '.join(accepted)}", argument="backend")
    names = [name for name in FLAVORS if name in backends]
    ranges = {name: parse_range(name, text) for name, text in sizes.items() if text is not None}
    check_sizes(family, ranges)
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} cannot share a process; build one, then the other")
    if not names:
        if ranges:
            raise InputError(
                f"--{next(iter(ranges))} is for engines only, ONNX graphs accept every size; add --backend"
                f" {' or '.join(FLAVORS)}, or remove it"
            )
        return None
    flavor = FLAVORS[names[0]]
    hardware = flavor.hardware(targets)
    options = BuildOptions(hardware, optimization_level, workspace and workspace * MIB, strip_weights)
    return BuildPlan(flavor, ranges, options)


def engine_row(bundle: Path, built: Built) -> dict[str, object]:
    """Return an engine's entry in the output of ``--json``."""
    key, path = built.engine.entry.key, built.engine.path
    return {
        "graph": path.parent.name,
        "backend": key.backend,
        "version": key.version,
        "hardware": key.hardware,
        "file": path.relative_to(bundle).as_posix(),
        "bytes": path.stat().st_size,
        "seconds": built.engine.entry.seconds,
        "new": built.new,
        "profile": key.profile,
    }


def print_engines(bundle: Path, built: Iterable[Built]) -> None:
    """Print one line per engine on stdout."""
    for one in built:
        row = engine_row(bundle, one)
        state = f"built in {row['seconds']} s" if one.new else "was built before"
        print(f"{bundle / str(row['file'])}: {one.engine.path.stat().st_size / 1e6:.0f} MB, {state}")


def _part(report: Progress, name: str, before: float, share: float) -> Progress:
    return lambda stage, done: report(f"{name}: {stage}", before + share * done)


def _bytes(manifest: Manifest, graph_name: str) -> int:
    return sum(entry.bytes for entry in graph_files(manifest, graph_name).values())
