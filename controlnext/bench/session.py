"""A whole benchmark: the choice of targets and measurements, and their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from controlnext.bench.checks import check_bundles, check_few_steps, check_settings
from controlnext.bench.choices import DECODES, IMAGES, STEPS, Surroundings, ways_of_less
from controlnext.bench.hardware import core_count, find_hardware, free_memory
from controlnext.bench.messages import Target, TurnKind, Work
from controlnext.bench.prepare import prepare
from controlnext.bench.quality import Exam, Gallery
from controlnext.bench.results import Missing, Results
from controlnext.bench.settings import BATCHES, FRAMES, IMAGE_STEPS, SIZES, Settings
from controlnext.bench.targets import all_targets
from controlnext.bench.turns import Log, TurnPlan, run_cold, run_loads, run_warm
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.scratch import temporary_directory
from controlnext.engines.tensorrt.gpu import gpu_of
from controlnext.errors import InputError
from controlnext.families import get_family
from controlnext.types import Progress

SIDE = 512
"""Upper limit of the default height and width in pixels."""
Item = tuple[str, TurnKind, Work]
"""The name of a measurement, the task that is run for it, and its size."""
_FREE = 0.9
"""Share of the free memory that processes open at the same time may use."""


def measure(
    bundles: Sequence[Path], settings: Settings, made: Path, report: Progress, exam: Exam | None = None
) -> Results:
    """Measure ``bundles``, all of one model, and the targets that they are compared with.

    Exports that targets need are made in the directory ``made``. Images are judged by ``exam``, and by how
    near they are to those of the float32 engine. Raises :class:`~controlnext.errors.InputError` for bundles
    of different models, unknown names, sizes that the model does not accept, and settings without effect.
    """
    manifests = check_bundles(bundles)
    check_settings(settings, manifests)
    check_few_steps(settings.few_steps, bundles)
    main = _main_work(manifests[0], settings)
    items = _step_items(main, settings)
    targets = _choose(bundles, settings, made)
    plan = TurnPlan(
        threads=settings.threads or core_count(),
        rounds=settings.rounds,
        runs=settings.runs,
        room=_FREE * free_memory(),
        report=_counted(report, _count_turns(targets, items, settings)),
    )
    log = Log()
    if items:
        ready = _prepared(_measured(targets, *STEPS), settings, items, report, log)
        run_warm(ready, "denoiser", items, plan, log)
    _run_images(_measured(targets, *IMAGES), main, settings, plan, report, log, exam)
    decodes: list[Item] = [(name, "decode", main) for name in DECODES if name in settings.measures]
    if decodes:
        ready = _prepared(_measured(targets, *DECODES), settings, decodes, report, log)
        run_warm(ready, "pipeline", decodes, plan, log)
    if "load" in settings.measures:
        run_loads(_measured(targets, "load"), made, plan, log)
    return _results(bundles, manifests[0], msgspec.structs.replace(settings, threads=plan.threads), log)


def _run_images(
    targets: Sequence[Target],
    main: Work,
    settings: Settings,
    plan: TurnPlan,
    report: Progress,
    log: Log,
    exam: Exam | None,
) -> None:
    asked = {"sampler": settings.sampler, "guidance": settings.guidance}
    image = msgspec.structs.replace(main, steps=settings.steps or IMAGE_STEPS, **asked)
    images: list[Item] = [(name, "image", image) for name in IMAGES if name in settings.measures]
    if not images:
        return
    ready = _prepared(targets, settings, images, report, log)
    if "image" in settings.measures:
        with temporary_directory("bench") as kept:
            gallery = Gallery(kept, exam)
            run_warm(ready, "pipeline", images[:1], replace(plan, gallery=gallery), log)
            log.measurements = [gallery.judged(found) for found in log.measurements]
    if cold := [name for name, _, _ in images if name != "image"]:
        run_cold(ready, image, cold, plan, log)


def _results(bundles: Sequence[Path], manifest: Manifest, settings: Settings, log: Log) -> Results:
    return Results(
        hardware=find_hardware(),
        settings=msgspec.to_builtins(settings),
        bundles=[path.name for path in bundles],
        family=manifest.family,
        size=sum(entry.bytes for entry in manifest.files.values()),
        measurements=log.measurements,
        missing=log.missing,
        groups=log.groups,
        turns=log.turns,
    )


def _main_work(manifest: Manifest, settings: Settings) -> Work:
    family = get_family(manifest.family)
    made_for = family.vae_factor * manifest.configs[family.denoiser]["sample_size"]
    usual = min(SIDE, made_for) // family.size_multiple * family.size_multiple
    height = settings.height or usual
    width = settings.width or height
    sides = [("height", height), ("width", width), *(("sizes", side) for side in settings.sizes or SIZES)]
    for name, side in sides:
        if side < 1 or side % family.size_multiple:
            raise InputError(
                f"`{name}` is {side}; it must be a multiple of {family.size_multiple}"
                f"{family.nearest_sizes(side)}",
                argument=name,
            )
    return Work(
        height=height, width=width, frames=(settings.frames or FRAMES)[0] if family.task == "video" else 1
    )


def _step_items(main: Work, settings: Settings) -> list[Item]:
    """Return the measurements of steps."""
    works = {
        "step": [main],
        "batch": [msgspec.structs.replace(main, batch=count) for count in settings.batches or BATCHES],
        "size": [msgspec.structs.replace(main, height=side, width=side) for side in settings.sizes or SIZES],
        "frames": [msgspec.structs.replace(main, frames=count) for count in settings.frames or FRAMES],
    }
    return [(name, "step", work) for name in STEPS if name in settings.measures for work in works[name]]


def _choose(bundles: Sequence[Path], settings: Settings, made: Path) -> list[Target]:
    gpu = gpu_of(settings.device) is not None
    less = ways_of_less(
        settings.cache_interval, settings.guidance_end, settings.tiny_decoder, settings.few_steps
    )
    around = Surroundings(made, settings.device, gpu, settings.optimum, settings.sdcpp, less)
    available = all_targets(bundles, around)
    chosen = [one for one in available if any(fnmatch(one.name, pattern) for pattern in settings.only)]
    if not chosen:
        names = ", ".join(dict.fromkeys(one.name for one in available))
        raise InputError(
            f"`only` {' '.join(settings.only)} matches no target; accepted: patterns of {names}",
            argument="only",
        )
    return chosen


def _measured(targets: Sequence[Target], *measures: str) -> list[Target]:
    """Return the targets that support any of ``measures``."""
    return [one for one in targets if set(measures) & set(one.measures)]


def _prepared(
    targets: Sequence[Target],
    settings: Settings,
    items: Sequence[Item],
    report: Progress,
    log: Log,
) -> list[Target]:
    """Make the files of ``targets`` and return the targets for which that succeeded."""
    ready = []
    for target in targets:
        report(f"preparing {target.name}", 0.0)
        try:
            prepare(target, Path(settings.optimum) if settings.optimum else None)
        # an exporter may raise anything; the reason is reported as a result
        except Exception as error:
            reason = str(error) or type(error).__name__
            log.missing += [Missing(target.name, name, work, reason) for name, _, work in items]
        else:
            ready.append(target)
    return ready


def _count_turns(targets: Sequence[Target], items: Sequence[Item], settings: Settings) -> int:
    asked, rounds = settings.measures, settings.rounds
    images, decodes = (len(_measured(targets, *some)) for some in (IMAGES, DECODES))
    count = len(items) * len(_measured(targets, *STEPS)) * rounds
    count += images * rounds * ("image" in asked) + decodes * rounds * ("decode" in asked)
    count += images * (1 + rounds) * (not {"first", "memory"}.isdisjoint(asked))
    return count + len(_measured(targets, "load")) * (1 + rounds) * ("load" in asked)


def _counted(report: Progress, total: int) -> Callable[[str], None]:
    """Return a function that reports the target of a turn and the share of the ``total`` turns done."""
    taken = 0

    def tell(turn: str) -> None:
        nonlocal taken
        report(turn, taken / total)
        taken += 1

    return tell
