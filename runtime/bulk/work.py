"""Doing jobs: over one batcher, a bounded number at a time."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from controlnext.bundle.files import sha256
from controlnext.bundle.remote import manifest_checksum
from controlnext.bundle.scratch import scratch_directory
from controlnext.errors import ControlNeXtError, InputError, OutOfMemoryError, is_hopeless
from controlnext.families.values import did_you_mean
from controlnext.image_input import IMAGE_SUFFIXES, open_image
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.bulk.job_recipe import recipe_of_job
from controlnext.runtime.bulk.jobs import Job, matches
from controlnext.runtime.bulk.ledger import Ledger, Record
from controlnext.runtime.bulk.places import SUFFIXES
from controlnext.runtime.media.image_files import ImageFiles, MakeRecipe, unchanged
from controlnext.runtime.media.kinds import Files
from controlnext.runtime.media.video_files import ClipFiles, Frames, natural_order
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.random import random_seed
from controlnext.runtime.ray_cluster import ReplicaRange, takes_gpu
from controlnext.runtime.request import MOST_IMAGES, check_least, is_finite
from controlnext.secrets import without_secrets

logger = logging.getLogger(__name__)

_NOT_FROM_JOBS = (
    "output_type",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "ip_adapter_image_embeds",
    "generator",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)
"""Arguments of a call that a job does not have: the form of its result, arrays and functions."""


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
        checksum: of the manifest that the bundle is to have; by default it may be any.
        fail_fast: whether a job that fails is the last one.
        metadata: whether images have their arguments in their files.
    """

    bundle: str
    root: str
    output: str
    backend: str
    device: str
    threads: int | None
    max_rows: int
    actors: ReplicaRange = ReplicaRange()  # noqa: RUF009  # it is frozen
    checksum: str | None = None
    fail_fast: bool = False
    metadata: bool = True

    def __post_init__(self) -> None:
        check_least("max_rows", self.max_rows, 1)

    @property
    def on_gpu(self) -> bool:
        """Whether a copy takes a GPU."""
        return takes_gpu(self.device)

    def load(self) -> Pipeline:
        """Open the pipeline; raise :class:`InputError` if its bundle is not that of the other processes."""
        pipe = Pipeline.load(self.bundle, self.backend, self.device, threads=self.threads)
        if self.checksum not in (None, manifest_checksum(pipe.bundle.path)):
            pipe.close()
            raise InputError(
                f"{self.bundle} is another bundle on {socket.gethostname()} than where the jobs were given;"
                " put the same one everywhere, and run again",
                argument="bundle",
            )
        return pipe


@dataclass(eq=False)
class _Running:
    """A job at work: its call, its files, and its result to be. ``make_recipe``: of its images, if they get
    one."""

    job: Job
    call: Mapping[str, Any]
    files: Files
    make_recipe: MakeRecipe | None
    future: Future[Any]
    started: float = field(default_factory=time.monotonic)

    def close(self, _future: Future[Any]) -> None:
        """Remove temporary files."""
        self.files.close()


def do_jobs(pipe: Pipeline, jobs: Iterable[Job], spec: BulkSpec, ledger: Ledger) -> Generator[Record]:
    """Do jobs and yield the record of each, when it is in the ledger and its files are written; they share
    steps where they can.

    At most ``spec.max_rows`` are at work at once: their work alone is lost if the process is killed. What
    runs is cancelled when the iterator is closed. Raises the error that every job would have: a bundle that
    is damaged, a library that is missing.
    """
    # a damaged denoiser is told before a job is begun
    pipe.bundle.engine(pipe.family.denoiser)
    running = set[_Running]()
    with (
        scratch_directory(Path(spec.output), "results") as aside,
        Batcher(pipe, max_rows=spec.max_rows, max_waiting=spec.max_rows) as batcher,
    ):
        try:
            for job in jobs:
                try:
                    running.add(_begun(pipe, batcher, job, spec))
                except Exception as error:  # of reading images and of odd values, besides our own
                    yield _failed(pipe, job, error, ledger)
                while len(running) >= spec.max_rows:
                    yield from _records(pipe, running, aside, ledger)
            while running:
                yield from _records(pipe, running, aside, ledger)
        finally:
            for one in running:
                one.future.cancel()
                one.future.add_done_callback(one.close)


def _begun(pipe: Pipeline, batcher: Batcher, job: Job, spec: BulkSpec) -> _Running:
    """Begin a job; raise what is wrong with its arguments or its images."""
    if job.problem is not None:
        raise InputError(job.problem)
    if job.count > MOST_IMAGES:
        raise InputError(
            f"num_images_per_prompt makes {job.count} images; give at most {MOST_IMAGES} a job",
            argument="num_images_per_prompt",
        )
    arguments = dict(job.arguments)
    files = _files(pipe, Path(spec.output) / job.id, arguments)
    try:
        given = _call(pipe, files, arguments, Path(spec.root))
        given.setdefault("seed", random_seed())
        recipe = recipe_of_job(pipe, job, given, Path(spec.root)) if spec.metadata else None
        return _Running(job, given, files, recipe, batcher.submit(**given))
    except BaseException:
        files.close()
        raise


def _files(pipe: Pipeline, path: Path, arguments: dict[str, Any]) -> Files:
    """Return the files of a job, named by ``path`` and a suffix; take out what is theirs alone."""
    if pipe.family.task != "video":
        # no with_suffix: an id may have a dot
        return ImageFiles(path.with_name(f"{path.name}{SUFFIXES['image']}"))
    fps, frames = arguments.pop("fps", None), arguments.get("num_frames")
    if fps is not None and not is_finite(fps):
        raise InputError(f"fps is {fps!r}; it must be a number", argument="fps")
    # an odd number of frames is refused with the other arguments
    limit = frames if isinstance(frames, int) and frames > 0 else None
    return ClipFiles(path.with_name(f"{path.name}{SUFFIXES['video']}"), fps, limit)


def _call(pipe: Pipeline, files: Files, arguments: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return the arguments of the call with images in place of paths."""
    known = _keys(pipe)
    for name in arguments:
        if name not in known:
            hint = did_you_mean(name, known) or f"; accepted: {', '.join(known)}"
            raise InputError(f"there is no argument {name!r}{hint}", argument=name)
    if files.subject not in arguments:
        raise InputError(f"no {files.subject} was given; set `{files.subject}`", argument=files.subject)
    readers = dict.fromkeys(("image", "mask_image", "control_image", "ip_adapter_image"), _images)
    readers["control_images"] = _clips
    if isinstance(loras := arguments.get("lora"), dict):
        pipe.offer_loras({path: root / path for path in loras})
    return {
        name: readers[name](value, root, files) if name in readers else value
        for name, value in arguments.items()
    }


def _image(path: Any, root: Path, _files: Files) -> Image.Image:
    if not isinstance(path, str):
        raise InputError(f"an image is {path!r}; give the path of a file")
    return open_image(root / path)


def _images(paths: Any, root: Path, files: Files) -> Any:
    return (
        [_images(path, root, files) for path in paths]
        if isinstance(paths, list)
        else _image(paths, root, files)
    )


def _clips(paths: Any, root: Path, files: Files) -> Any:
    """Return a clip: that of a video, a directory, a pattern or a list of images; or a list of clips."""
    if isinstance(paths, str):
        if _is_pattern(paths, root) and (found := matches(paths, root)):
            return Frames(sorted(found, key=lambda path: natural_order(path.name)), unchanged)
        return files.control(root / paths, unchanged)
    if not isinstance(paths, list):
        raise InputError(
            f"control_images is {paths!r}; give the path of a video or of a directory, or images"
        )
    if paths and all(isinstance(path, str) and _is_frame(path, root) for path in paths):
        return Frames([root / path for path in paths], unchanged)
    return [_clips(one, root, files) for one in paths]


def _is_pattern(path: str, root: Path) -> bool:
    # a file may have such a sign in its name
    return bool(set(path) & set("*?[")) and not (root / path).exists()


def _is_frame(path: str, root: Path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES and not _is_pattern(path, root)


def _records(pipe: Pipeline, running: set[_Running], aside: Path, ledger: Ledger) -> Iterator[Record]:
    """Wait for the next jobs to be done; write their files and yield their records."""
    wait([one.future for one in running], return_when=FIRST_COMPLETED)
    for one in [one for one in running if one.future.done()]:
        running.remove(one)
        with one.files:
            try:
                record = _saved(pipe, one, aside, ledger)
            except Exception as error:  # a job that fails stops no other
                record = _failed(pipe, one.job, error, ledger)
            yield record


def _saved(pipe: Pipeline, one: _Running, aside: Path, ledger: Ledger) -> Record:
    """Write the files of a job that is done; return its record."""
    result = one.future.result()
    images = result.frames[0] if pipe.family.task == "video" else result.images
    paths = one.files.save(iter(images), aside, one.make_recipe)
    record = {
        "id": one.job.id,
        "job": one.job.digest,
        "files": [path.name for path in paths],
        "seed": one.call["seed"],
        "seconds": round(time.monotonic() - one.started, 3),
        "backend": pipe.backend,
        "checksum": [sha256(path) for path in paths],
    }
    # first the record, on the disk: a file that no ledger names is not ours, and until then what was there is
    # right
    ledger.add(record)
    for path in paths:
        path.replace(one.files.output.with_name(path.name))
    return record


def _failed(pipe: Pipeline, job: Job, error: Exception, ledger: Ledger) -> Record:
    """Add the record of a job that failed to the ledger; raise an error that all jobs have."""
    if is_hopeless(error):
        raise error
    known = isinstance(error, ControlNeXtError)
    if not known:
        logger.error("job %s failed", job.id, exc_info=error)
    if isinstance(error, OutOfMemoryError):
        error = error.with_savers(name for name in error.savers if name in _keys(pipe))
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    record = {"id": job.id, "job": job.digest, "error": without_secrets(" ".join(reason.split()))}
    ledger.add(record)
    return record


def _keys(pipe: Pipeline) -> list[str]:
    """Return the arguments of a call that a job may have."""
    return [one.name for one in fields(pipe.request) if one.name not in _NOT_FROM_JOBS]
