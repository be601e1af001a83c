"""Clips that are made beside the requests for them, and kept for a while."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from controlnext.bundle.scratch import temporary_directory
from controlnext.errors import QueueFullError
from controlnext.runtime.serving.answers import ClipAnswer, JobError
from controlnext.runtime.serving.clip_calls import ClipFields
from controlnext.runtime.serving.clip_list import Listed
from controlnext.runtime.serving.clip_work import ClipUploads, ClipWork
from controlnext.runtime.serving.errors import CLIP_FIELDS, HttpError, error_answer, is_foreseen, too_busy
from controlnext.runtime.serving.generation import Generation
from controlnext.runtime.serving.service import Service

logger = logging.getLogger(__name__)

MOST = 100
"""Most clips that are there at once; the oldest that is finished makes room."""
AGE = 3600
"""Seconds that a finished clip is kept."""
_LATER = 60
"""Seconds after which one of so many clips may be done."""


@dataclass(eq=False)
class ClipJob:
    """A clip that is made, or was: its file is ``path`` once it is completed."""

    id: str
    prompt: str | None
    work: ClipWork
    path: Path
    generation: Generation
    created: float = field(default_factory=time.time)
    ended: int | None = None
    ended_by_clock: float = 0.0
    removed: bool = False

    def __post_init__(self) -> None:
        self.generation.task.add_done_callback(lambda _: self._end())

    @property
    def finished(self) -> bool:
        """Whether it is completed or failed."""
        return self.generation.task.done()

    @property
    def error(self) -> JobError | None:
        """The reason for which it failed."""
        task = self.generation.task
        if not task.done() or task.cancelled() or (error := task.exception()) is None:
            return None
        return JobError.model_validate(error_answer(error, CLIP_FIELDS, self.id).fields)

    def answer(self) -> ClipAnswer:
        """Return the job as clients see it."""
        error, (taken, total) = self.error, self.work.steps
        status = "queued" if not taken else "in_progress"
        if self.finished:
            status = "failed" if error else "completed"
        return ClipAnswer.model_validate(
            {
                "id": self.id,
                "status": status,
                # the last hundredth is the writing of the file
                "progress": 100 if status == "completed" else 99 * taken // total,
                "created_at": int(self.created),
                "completed_at": self.ended if status == "completed" else None,
                "expires_at": self.ended and self.ended + AGE,
                "model": self.work.profile.bundle.name,
                "prompt": self.prompt,
                "seconds": self.work.seconds,
                "size": self.work.size,
                "seed": self.work.seed,
                "error": error,
            }
        )

    def remove(self) -> None:
        """Stop the work and remove the file."""
        self.removed = True
        self.work.stop()
        self.generation.cancel()
        self.path.unlink(missing_ok=True)

    def _end(self) -> None:
        self.ended, self.ended_by_clock = int(time.time()), time.monotonic()
        if self.removed:
            # it may just have been finished all the same
            self.path.unlink(missing_ok=True)
        task = self.generation.task
        if not task.cancelled() and (error := task.exception()) and not is_foreseen(error):
            logger.error("clip %s failed", self.id, exc_info=error)


class ClipJobs:
    """The clips of an application, in memory, with their files in a temporary directory."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs: dict[str, ClipJob] = {}
        self._directory: Path | None = None
        self._temporary = ExitStack()

    def add(self, call: ClipFields, files: ClipUploads) -> ClipJob:
        """Begin to make a clip.

        Raises :class:`InputError` for fields that are not accepted, and :class:`HttpError` if there are too
        many clips.
        """
        self._forget_old()
        self._make_room()
        if self._directory is None:
            self._directory = self._temporary.enter_context(temporary_directory("clips"))
        name = f"video_{secrets.token_hex(12)}"
        path = self._directory / f"{name}.mp4"
        work = ClipWork(self._service, call, files, path)
        job = ClipJob(name, call.prompt, work, path, work.start())
        self._jobs[name] = job
        return job

    def get(self, name: str) -> ClipJob:
        """Return a clip; raise :class:`HttpError` if there is none of that name, or no more."""
        self._forget_old()
        if name not in self._jobs:
            message = f"there is no clip {name!r}; finished clips are kept for {AGE // 60} minutes"
            raise HttpError(404, message, param="video_id", code="not_found")
        return self._jobs[name]

    def listed(self) -> list[Listed]:
        """Return the clips that are there."""
        self._forget_old()
        return [(job.created, job.answer()) for job in self._jobs.values()]

    def remove(self, name: str) -> None:
        """Cancel a clip, or delete it if it is finished."""
        self.get(name).remove()
        del self._jobs[name]

    async def close(self) -> None:
        """Cancel all clips and remove their files."""
        jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            job.remove()
        # what is being written ends at the next frame
        await asyncio.gather(*(job.generation.task for job in jobs), return_exceptions=True)
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the files of all clips, finished or not."""
        self._temporary.close()

    def _forget_old(self) -> None:
        for name, job in list(self._jobs.items()):
            if job.ended is not None and job.ended_by_clock + AGE < time.monotonic():
                self._jobs.pop(name).remove()

    def _make_room(self) -> None:
        """Remove the oldest clips that are finished, if there are too many."""
        while len(self._jobs) >= MOST:
            oldest = next((name for name, job in self._jobs.items() if job.finished), None)
            if oldest is None:
                raise too_busy(QueueFullError(len(self._jobs)), _LATER)
            self._jobs.pop(oldest).remove()
