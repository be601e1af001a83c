"""Make many images and clips in one process, and see that nothing grows and no result changes.

    python benchmarks/soak.py

Prints a Markdown table with a row for each phase: calls one by one, of all kinds, with refused and abandoned
ones between; threads that share a pipeline; loading and closing; pipelines of two bundles at once; a batcher;
a server. Results are compared bit for bit with those of a fresh process (of batcher and server but for
rounding). Memory, file handles, threads, and files in the temporary directory and beside the bundles are
medians over the first and the last quarter of a phase's readings, after its warm-up. The status is 1 where
something is wrong. Without bundles of their own it makes small ones of the tests' models, once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from soak_bundles import Subject, small_clips, small_images
from soak_calls import fresh_results, open_subject
from soak_meter import Meter, SoakPhase, print_head
from soak_phases import BATCHED_ROWS, batched, in_threads, loads, one_by_one
from soak_server import served

from controlnext.engines.registry import BACKENDS

BACKENDS_HERE = ("onnxruntime", "openvino")
"""The backends that are loaded again and again, where they are installed."""
LOADED_KINDS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit with 1 if something is wrong."""
    given = _parser().parse_args(arguments)
    folder = Path(given.folder)
    bundles = [given.bundle or small_images(folder), given.clip_bundle or small_clips(folder)]
    with _own_temporary_directory() as scratch:
        images, clips = (_copy(Subject.of(bundle), scratch / "bundles") for bundle in bundles)
        phases = _soak(images, clips, given, Meter([scratch]))
    faults = [f"{phase.title}: {fault}" for phase in phases for fault in phase.faults]
    print("\n".join(faults or ["nothing is wrong"]), flush=True)
    if faults:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8, help="threads that share a pipeline")
    parser.add_argument("--loads", type=int, default=200, help="of each backend")
    parser.add_argument("--kinds", type=int, default=40, help="different calls of each bundle")
    parser.add_argument("--engine-threads", type=int, help="threads of an engine, by default all cores")
    parser.add_argument("--bundle", type=Path, help="a bundle for images; LoRAs lie in <bundle>-loras")
    parser.add_argument("--clip-bundle", type=Path, help="a bundle for clips")
    parser.add_argument("--folder", default="build/soak", help="where the small bundles are made")
    return parser


def _soak(images: Subject, clips: Subject, given: argparse.Namespace, meter: Meter) -> list[SoakPhase]:
    threads = given.engine_threads
    kinds = [min(given.kinds, given.images), min(given.kinds, given.clips)]
    both = (images, clips)
    wanted = [
        fresh_results(one, range(count), "auto", threads) for one, count in zip(both, kinds, strict=True)
    ]
    print_head(print)
    with open_subject(images, threads=threads) as pipe, open_subject(clips, threads=threads) as video:
        pipes = [(pipe, wanted[0]), (video, wanted[1])]
        meter.measure("images", one_by_one(*pipes[0], given.images), given.images)
        meter.measure("clips", one_by_one(*pipes[1], given.clips), given.clips)
        shared, pairs, some = given.images // 2, given.clips // 2, given.images // 4
        title = f"images of one pipeline in {given.threads} threads"
        meter.measure(title, in_threads(pipes[:1], shared, given.threads), shared)
        title = f"images and clips of two pipelines in {given.threads} threads"
        meter.measure(title, in_threads(pipes, pairs, given.threads), 2 * pairs)
        meter.measure(f"images of a batcher of {BATCHED_ROWS} rows", batched(*pipes[0], some), some)
    for name in BACKENDS_HERE:
        if BACKENDS[name].available():
            # a process for each: OpenVINO's rounding depends on the sizes that it has met
            again = [fresh_results(images, [kind], name, threads)[0] for kind in range(LOADED_KINDS)]
            meter.measure(f"loads of {name}", loads(images, name, again, given.loads, threads), given.loads)
    meter.measure("images and clips over HTTP", served(images, clips, some, threads), some)
    return meter.phases


@contextmanager
def _own_temporary_directory() -> Iterator[Path]:
    """Make a temporary directory for everything in the block; yield its path."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="soak-") as path:
        os.environ["TMPDIR"], tempfile.tempdir = path, None
        try:
            yield Path(path)
        finally:
            os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
            tempfile.tempdir = None


def _copy(subject: Subject, directory: Path) -> Subject:
    """Return a copy of a bundle, whose directory engines may write to."""
    return Subject(Path(shutil.copytree(subject.bundle, directory / subject.bundle.name)), subject.loras)


if __name__ == "__main__":
    main()
