"""Doing jobs: over one batcher, a bounded number at a time."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image

from controlnext.bundle.files import new_file, sha256
from controlnext.errors import ControlNeXtError, InputError
from controlnext.image_input import IMAGE_SUFFIXES, ImageReader, open_image
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.results import Record
from controlnext.runtime.media.video_files import DEFAULT_FPS, open_clip, write_clip
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.ray_cluster import ReplicaRange

logger = logging.getLogger(__name__)

_NOT_FROM_JOBS = (
    "output_type",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
"""Arguments of a call that a job does not have: the form of its result, and arrays."""
_SEEDS = 2**32
"""Number of seeds that differ."""


@dataclass(frozen=True)
class BulkSpec:
    """How jobs are done.

    Args:
        bundle: location of the bundle.
        root: the directory to which paths in jobs are relative.
        output: the directory of the results.
        backend, device, threads: as for :meth:`Pipeline.load`.
        max_rows: the most jobs at work at once, and the most rows in a run of the denoiser.
        actors: how many copies there are on a cluster, where a ``device`` of CUDA takes a GPU for each.
    """

    bundle: str
    root: str
    output: str
    backend: str
    device: str
    threads: int | None
    max_rows: int
    actors: ReplicaRange = ReplicaRange()  # noqa: RUF009  # it is frozen

    @property
    def on_gpu(self) -> bool:
        """Whether a copy takes a GPU."""
        return self.device.startswith("cuda")

    def load(self) -> Pipeline:
        """Open the pipeline."""
        return Pipeline.load(self.bundle, self.backend, self.device, threads=self.threads)


@dataclass(eq=False)
class _Running:
    """A job at work: its seed, its result to be, and the files that are open for it."""

    job: Job
    seed: int
    future: Future[Any]
    opened: ExitStack
    started: float = field(default_factory=time.monotonic)

    def close(self, _future: Future[Any]) -> None:
        """Close the files."""
        self.opened.close()


def do_jobs(pipe: Pipeline, jobs: Iterable[Job], spec: BulkSpec) -> Generator[Record]:
    """Do jobs and yield the record of each, when its files are written; they share steps where they can.

    At most ``spec.max_rows`` are at work at once: their work alone is lost if the process is killed. What
    runs is cancelled when the iterator is closed.
    """
    running, root, output = set[_Running](), Path(spec.root), Path(spec.output)
    with Batcher(pipe, max_rows=spec.max_rows, max_waiting=spec.max_rows) as batcher:
        try:
            for job in jobs:
                try:
                    running.add(_begun(pipe, batcher, job, root))
                except Exception as error:  # of reading images and of odd values, besides our own
                    yield _failure(job, error)
                while len(running) >= spec.max_rows:
                    yield from _records(pipe, running, output)
            while running:
                yield from _records(pipe, running, output)
        finally:
            for one in running:
                one.future.cancel()
                one.future.add_done_callback(one.close)


def _begun(pipe: Pipeline, batcher: Batcher, job: Job, root: Path) -> _Running:
    """Begin a job; raise what is wrong with its arguments or its images."""
    if job.problem is not None:
        raise InputError(job.problem)
    with ExitStack() as opened:
        given = _call(pipe, job.arguments, root, opened)
        seed = given.setdefault("seed", secrets.randbelow(_SEEDS))
        return _Running(job, seed, batcher.submit(**given), opened.pop_all())


def _call(pipe: Pipeline, arguments: Mapping[str, Any], root: Path, opened: ExitStack) -> dict[str, Any]:
    """Return the arguments of the call with images in place of paths."""
    known = [one.name for one in fields(pipe.request) if one.name not in _NOT_FROM_JOBS]
    for name in arguments:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"accepted: {', '.join(known)}"
            raise InputError(f"there is no argument {name!r}; {hint}", argument=name)
    readers = {"image": _image, "control_image": _images, "control_images": _clips}
    return {
        name: readers[name](value, root, opened) if name in readers else value
        for name, value in arguments.items()
    }


def _image(path: Any, root: Path, _opened: ExitStack) -> Image.Image:
    if not isinstance(path, str):
        raise InputError(f"an image is {path!r}; give the path of a file")
    return open_image(root / path)


def _images(paths: Any, root: Path, opened: ExitStack) -> Any:
    return (
        [_image(path, root, opened) for path in paths]
        if isinstance(paths, list)
        else _image(paths, root, opened)
    )


def _clips(paths: Any, root: Path, opened: ExitStack) -> Any:
    """Return a clip: that of a video or a directory, or of the images in a list; or a list of clips."""
    if isinstance(paths, str):
        change = ImageReader(paths, one_ground=True).read_rgb
        return opened.enter_context(open_clip(root / paths, change))
    if not isinstance(paths, list):
        raise InputError(
            f"control_images is {paths!r}; give the path of a video or of a directory, or images"
        )
    files = [isinstance(path, str) and Path(path).suffix.lower() in IMAGE_SUFFIXES for path in paths]
    if files and all(files):
        return [open_image(root / path) for path in paths]
    return [_clips(one, root, opened) for one in paths]


def _records(pipe: Pipeline, running: set[_Running], output: Path) -> Iterator[Record]:
    """Wait for the next jobs to be done; write their files and yield their records."""
    wait([one.future for one in running], return_when=FIRST_COMPLETED)
    for one in [one for one in running if one.future.done()]:
        running.remove(one)
        with one.opened:
            yield _record(pipe, one, output)


def _record(pipe: Pipeline, one: _Running, output: Path) -> Record:
    try:
        paths = _write(pipe, one.job, one.future.result(), output)
    except Exception as error:  # a job that fails stops no other
        return _failure(one.job, error)
    return {
        "id": one.job.id,
        "job": one.job.digest,
        "files": [path.name for path in paths],
        "seed": one.seed,
        "seconds": round(time.monotonic() - one.started, 3),
        "backend": pipe.backend,
        "checksum": [sha256(path) for path in paths],
    }


def _write(pipe: Pipeline, job: Job, result: Any, output: Path) -> list[Path]:
    """Write the files of a result, each under another name until it is whole."""
    if pipe.family.task == "video":
        path = output / f"{job.id}.mp4"
        write_clip(path, iter(result.frames[0]), DEFAULT_FPS)
        return [path]
    several = len(result.images) > 1
    paths = [
        output / (f"{job.id}-{number}.png" if several else f"{job.id}.png")
        for number in range(1, len(result.images) + 1)
    ]
    for path, image in zip(paths, result.images, strict=True):
        with new_file(path) as aside:
            image.save(aside)
    return paths


def _failure(job: Job, error: Exception) -> Record:
    known = isinstance(error, ControlNeXtError)
    if not known:
        logger.error("job %s failed", job.id, exc_info=error)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return {"id": job.id, "job": job.digest, "error": " ".join(reason.split())}
