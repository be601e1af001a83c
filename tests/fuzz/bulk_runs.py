"""Runs of ``controlnext batch``: earlier results, the command, and what it may leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from fuzz import commands
from fuzz.verdict import wrong_text


def copied(source: str, target: str) -> None:
    """Copy a file; a pipe is made anew."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    elif Path(source).stat().st_size > 1 << 27:
        # a hole
        Path(target).touch()
        os.truncate(target, Path(source).stat().st_size)
    else:
        shutil.copy(source, target)


def contents(directory: Path) -> dict[str, str]:
    """Return what is in a directory, but for the lock."""
    return {
        str(path.relative_to(directory)): _content(path)
        for path in sorted(directory.rglob("*"))
        if path.name != ".lock" and not path.is_dir()
    }


def _content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    small = path.is_file() and path.stat().st_size < 1 << 27
    return hashlib.sha256(path.read_bytes()).hexdigest() if small else ""


def run_jobs(directory: Path, jobs: Path, results: Path) -> None:
    """Run the command; that some jobs failed is no refusal."""
    try:
        commands.run(
            *("batch", directory / "bundle", "--jobs", jobs, "--output", results, "--max-rows", 2),
            *("--backend", "onnxruntime", "--device", "cpu", "--threads", 1),
        )
    except AssertionError as error:
        said = str(error)
        if (
            not said.startswith("exit status 1")
            or "Traceback" in said
            or "error: " in said.split(" failed: ")[0]
        ):
            raise
        if wrong := wrong_text(said[-3000:]):
            raise AssertionError(wrong) from error


def check_ledger(results: Path) -> None:
    """Raise :class:`AssertionError` unless every file of the ledger is there, and every error can be read."""
    for line in (results / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        error = record.get("error", "x")
        if not isinstance(error, str) or not error or wrong_text(error):
            raise AssertionError(f"the error of {record['id']!r} is {error!r}")
        for name in record.get("files", ()):
            # that of a job that is no longer asked for stays as it was told
            gone = record["id"] != "old" and not (results / name).is_file()
            if Path(name).name != name or gone:
                raise AssertionError(f"the ledger names {name!r}")
