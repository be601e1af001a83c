"""``controlnext batch``: do the jobs of a file, each once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from controlnext.bundle.remote import is_remote, read_manifest_of
from controlnext.bundle.remote_files import check_location
from controlnext.cli import options, ray_options, run_options
from controlnext.cli.bundles import shared_location
from controlnext.cli.console import print_json, progress
from controlnext.cli.option_names import AS_WRITTEN
from controlnext.families import get_family
from controlnext.runtime.bulk.basis import with_basis
from controlnext.runtime.bulk.jobs import PARQUET, Job, read_jobs
from controlnext.runtime.bulk.ledger import LEDGER, Record
from controlnext.runtime.bulk.places import SUFFIXES, Places
from controlnext.runtime.bulk.results import JobResults, open_results
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from controlnext.runtime.ray_cluster import (
    LOCAL,
    ReplicaRange,
    check_room,
    device_on,
    join_cluster,
    leave_cluster,
    threads_of_replica,
)

logger = logging.getLogger(__name__)

Jobs = Annotated[
    Path,
    typer.Option(
        parser=options.local_path("jobs"),
        metavar="FILE",
        help="Path to the jobs: a file with one JSON object a line, or a Parquet file.",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        parser=options.local_path("output"),
        metavar="DIR",
        help="Path to the directory of the results.",
        show_default=False,
    ),
]
MaxRows = Annotated[
    int, typer.Option(help="Largest number of jobs at work, and of rows in a run of the denoiser.")
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first job that fails.")]


def batch(
    bundle: options.Bundle,
    jobs: Jobs,
    output: Output,
    max_rows: MaxRows = 8,
    fail_fast: FailFast = False,
    no_metadata: run_options.NoMetadata = False,
    backend: options.RunBackend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    ray: ray_options.Ray = None,
    replicas: ray_options.Replicas = None,
    as_json: options.Json = False,
) -> None:
    """Do the jobs of a file: each is a call of the pipeline, its results are files in a directory.

    Run again, it goes on: jobs that were done are not done again, those that failed are.
    """
    started, several = time.monotonic(), ReplicaRange.parse(replicas or "1")
    ray_options.check_ray(ray, replicas=replicas)
    # before anything is done: results of another bundle are not kept
    manifest, checksum = read_manifest_of(bundle)
    spec = BulkSpec(
        shared_location(bundle),
        str(jobs.parent.resolve()),
        str(output.resolve()),
        backend,
        device,
        threads if ray is None else threads_of_replica(threads, several, local=ray == LOCAL),
        max_rows,
        several,
        checksum,
        fail_fast,
        not no_metadata,
    )
    if ray is not None and is_remote(bundle):
        check_location(bundle)
    all_jobs = with_basis(read_jobs(jobs), Path(spec.root), checksum)
    table, suffix = jobs.suffix.lower() == PARQUET, SUFFIXES[get_family(manifest.family).task]
    # stdout is for the summary: Ray prints lines of its processes there
    with redirect_stdout(sys.stderr), open_results(output) as results:
        left = results.prepare(all_jobs, Places(jobs, output, suffix, table))
        try:
            records = _here(left, spec, results) if ray is None else _on_ray(left, spec, ray)
            _follow(records, len(left), fail_fast=fail_fast, quiet=as_json)
        except KeyboardInterrupt:
            logger.warning("stopped; what is done stays in %s, the same command goes on from there", output)
            raise
        found = results.join(all_jobs, table=table)
    summary = _summary(all_jobs, left, found, time.monotonic() - started)
    if as_json:
        print_json({"output": str(output), **summary})
    else:
        told = ", ".join(_counted(value, name.replace("_", " ")) for name, value in summary.items())
        print(f"{output / LEDGER}: {told}")
    if summary["failed"]:
        raise typer.Exit(1)


def _counted(number: float, what: str) -> str:
    """Return a number with what it counts, in the singular for one."""
    return f"{number} {what.removesuffix('s') if number == 1 else what}"


def _summary(
    jobs: Sequence[Job], left: Sequence[Job], records: Sequence[Record], seconds: float
) -> dict[str, float]:
    """Return what came of the jobs: of those that were ``left`` to do, what the ledger says."""
    found = {record["id"]: record for record in records}
    new = [record for job in left if (record := found.get(job.id, {})) and _is_new(record, job)]
    done = [record for record in new if "error" not in record]
    return {
        "jobs": len(jobs),
        "done": len(done),
        "failed": len(new) - len(done),
        "done_before": len(jobs) - len(left),
        "not_begun": len(left) - len(new),
        "images": sum(len(record["files"]) for record in done),
        "seconds": round(seconds, 1),
    }


def _is_new(record: Record, job: Job) -> bool:
    """Return whether a record tells of this run, and not of an earlier result of a job that was not begun."""
    return "error" in record or record["job"] == job.digest


def _here(jobs: Sequence[Job], spec: BulkSpec, results: JobResults) -> Generator[Record]:
    """Do the jobs in this process."""
    with (
        spec.load() as pipe,
        closing(results.whole()) as ledger,
        closing(do_jobs(pipe, jobs, spec, ledger)) as records,
    ):
        yield from records


def _on_ray(jobs: Sequence[Job], spec: BulkSpec, address: str) -> Generator[Record]:
    """Do the jobs on a cluster, whose actors write the ledger."""
    ray = join_cluster(address)
    from controlnext.runtime.bulk.ray_data import do_on_ray

    try:
        spec = replace(spec, device=device_on(ray, spec.device))
        check_room(ray, spec.threads or 1, spec.device, spec.actors.least, local=address == LOCAL)
        yield from do_on_ray(jobs, spec)
    finally:
        leave_cluster(ray, address)


def _follow(records: Generator[Record], count: int, *, fail_fast: bool, quiet: bool) -> None:
    """Show the progress of jobs, and the errors of those that fail."""
    counts = {"done": 0, "failed": 0}
    with progress(quiet) as report, closing(records):
        report("loading", 0.0)
        for record in records if count else ():
            failed = "error" in record
            counts["failed" if failed else "done"] += 1
            if failed:
                logger.error("job %s failed: %s", record["id"], record["error"], extra=AS_WRITTEN)
            finished = counts["done"] + counts["failed"]
            report(f"{counts['done']} done, {counts['failed']} failed", finished / count)
            if failed and fail_fast:
                break
