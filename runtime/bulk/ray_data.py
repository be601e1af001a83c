"""Doing jobs on a Ray cluster: a pipeline of Ray Data with a pool of actors, each with a batcher."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from controlnext.errors import ControlNeXtError, InputError, WorkError
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.results import JobResults, Record
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.ray_cluster import own_device

_REFUSED = "refused"
"""In place of a record: why an actor cannot open the pipeline, and the argument at fault."""


class _Actor:
    """Does batches of jobs. Records go to a ledger of its own at once: what was done is not done again."""

    def __init__(self, spec: BulkSpec) -> None:
        self._spec = replace(spec, device=own_device(spec.device))
        self._pipe: Pipeline | None = None
        self._refusal: dict[str, tuple[str, str | None]] = {}
        try:
            self._pipe = self._spec.load()
        except ControlNeXtError as error:
            # as data: Ray would start the actor again and again
            self._refusal = {_REFUSED: (str(error), error.argument)}
        self._ledger = JobResults(Path(spec.output)).part(secrets.token_hex(8))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        if self._pipe is None:
            return {"record": [msgspec.json.encode(self._refusal)]}
        jobs = [msgspec.json.decode(line, type=Job) for line in batch["job"]]
        records = []
        for record in do_jobs(self._pipe, jobs, self._spec):
            self._ledger.add(record)
            records.append(msgspec.json.encode(record))
        return {"record": records}


def do_on_ray(jobs: Sequence[Job], spec: BulkSpec) -> Iterator[Record]:
    """Do jobs on the cluster that was joined and yield their records as they come, in any order.

    Raises :class:`InputError` if no pipeline can be opened, :class:`WorkError` if the cluster fails.
    """
    from ray import data
    from ray.exceptions import RayError

    context = data.DataContext.get_current()
    # who asked for the jobs shows their progress
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # as many as share the steps of an actor, twice: it does not run empty at the end of each
    batch = 2 * spec.max_rows
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
                message, argument = record[_REFUSED]
                raise InputError(message, argument=argument)
            yield record
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise WorkError(f"the cluster could not go on: {reason}; run again to continue") from error


def check_room(ray: Any, spec: BulkSpec) -> None:
    """Raise :class:`InputError` if the cluster, which does not grow, has fewer cores than the actors need."""
    least, cores = spec.actors.least, int(ray.cluster_resources().get("CPU", 0))
    if spec.threads is not None and least * spec.threads > cores:
        raise InputError(
            f"threads is {spec.threads} for {least} replicas and this machine has {cores} cores; give"
            f" {max(1, cores // least)} or fewer `replicas`",
            argument="threads",
        )
