"""Doing jobs on a Ray cluster: a pipeline of Ray Data with a pool of actors, each with a batcher."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from socket import gethostname
from typing import Any

import msgspec

from controlnext.errors import ControlNeXtError, InputError, WorkError
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import Record
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.ray_cluster import own_device

_REFUSED = "refused"
"""In place of a record: why an actor cannot do any job, the argument at fault, whether the input is."""


class _Actor:
    """Does batches of jobs. Records go to a ledger of its own at once: what was done is not done again."""

    def __init__(self, spec: BulkSpec) -> None:
        self._spec = replace(spec, device=own_device(spec.device))
        self._pipe: Pipeline | None = None
        self._refusal: dict[str, tuple[str, str | None, bool]] = {}
        try:
            self._results = JobResults(Path(spec.output))
            self._ledger = self._results.part(secrets.token_hex(8))
            self._pipe = self._spec.load()
        except ControlNeXtError as error:
            self._refuse(error)
        except OSError as error:
            told = f"cannot write to {spec.output} on {gethostname()}: {error.strerror}"
            self._refuse(InputError(f"{told}; give a directory that every node sees", argument="output"))

    def _refuse(self, error: ControlNeXtError) -> None:
        # as data: Ray would start the actor again and again
        self._refusal = {_REFUSED: (str(error), error.argument, isinstance(error, InputError))}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        jobs = [msgspec.json.decode(line, type=Job) for line in batch["job"]]
        records: list[Record] = []
        if self._pipe is not None:
            try:
                records = list(self._records(self._pipe, jobs))
            except ControlNeXtError as error:
                self._refuse(error)
        found = [self._refusal] if self._refusal else records
        return {"record": [msgspec.json.encode(record) for record in found]}

    def _records(self, pipe: Pipeline, jobs: Sequence[Job]) -> Iterator[Record]:
        """Yield the records of a batch; of a batch that died with another actor, those that this one left."""
        self._results.look()
        before = {job.id: record for job in jobs if (record := self._results.done(job))}
        yield from before.values()
        left = [job for job in jobs if job.id not in before]
        with closing(do_jobs(pipe, left, self._spec, self._ledger)) as records:
            for record in records:
                yield record
                if self._spec.fail_fast and "error" in record:
                    break


def do_on_ray(jobs: Sequence[Job], spec: BulkSpec) -> Iterator[Record]:
    """Do jobs on the cluster that was joined and yield their records as they come, in any order.

    Raises :class:`InputError` if no job can be done, :class:`WorkError` if the cluster or a disk fails.
    """
    from ray import data
    from ray.exceptions import RayError

    context = data.DataContext.get_current()
    # who asked for the jobs shows their progress
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # as many as share the steps of an actor, twice: it does not run empty at the end of each; few are shared
    batch = max(1, min(2 * spec.max_rows, len(jobs) // spec.actors.most))
    # blocks of this size from the start: to divide them later takes a core, and the actors may have all
    rows = data.from_items(
        [{"job": msgspec.json.encode(asdict(job))} for job in jobs],
        override_num_blocks=max(1, len(jobs) // batch),
    )
    done = rows.map_batches(
        _Actor,
        fn_constructor_args=(spec,),
        batch_size=batch,
        compute=data.ActorPoolStrategy(min_size=spec.actors.least, max_size=spec.actors.most),
        num_cpus=spec.threads,
        num_gpus=int(spec.on_gpu),
    )
    try:
        for row in done.iter_rows():
            record = msgspec.json.decode(row["record"])
            if _REFUSED in record:
                message, argument, of_input = record[_REFUSED]
                raise (InputError if of_input else WorkError)(message, argument=argument)
            yield record
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise WorkError(f"the cluster could not go on: {reason}; run again to continue") from error
