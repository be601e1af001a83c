"""The command line of the fuzzer."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fuzz.campaign import Campaign, Tally, read_seeds, write_seed
from fuzz.target import Case
from fuzz.targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"


def main() -> None:
    """Run the command."""
    application = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    application.command()(_fuzz)
    application()


def _fuzz(
    minutes: Annotated[float, typer.Option(help="Fuzz for so long.", min=0)] = 0,
    cases: Annotated[int, typer.Option(help="Fuzz so many cases.", min=0)] = 0,
    target: Annotated[list[str] | None, typer.Option(help="Only these targets; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cases.")] = 0,
    jobs: Annotated[int, typer.Option(help="Number of cases at once.", min=1)] = os.cpu_count() or 1,
    findings: Annotated[Path, typer.Option(help="Directory for what is found.")] = Path("build/fuzz"),
) -> None:
    """Try the kept seeds, then changed inputs; exit with 1 if any of them shows a fault."""
    chosen = {name: TARGETS[name] for name in target or TARGETS}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        campaign = Campaign(chosen, Path(root))
        seeds = [case for case in read_seeds(SEEDS) if case.target in chosen]
        until = time.monotonic() + 60 * minutes if minutes else float("inf")
        tally, told = Tally(), time.monotonic()
        for tally in campaign.run(_all(campaign, seeds, seed, minutes, cases), jobs, until):
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{tally.cases} cases, {len(tally.findings)} faults", flush=True)
    _report(tally, findings)
    raise typer.Exit(1 if tally.findings else 0)


def _all(campaign: Campaign, seeds: list[Case], seed: int, minutes: float, cases: int) -> Iterator[Case]:
    proposed = campaign.proposals(seed)
    return itertools.chain(seeds, proposed if minutes and not cases else itertools.islice(proposed, cases))


def _report(tally: Tally, directory: Path) -> None:
    for (name, kind), count in sorted(tally.outcomes.items()):
        print(f"{name}: {count} {kind}")
    print(f"{tally.cases} cases, {len(tally.findings)} faults")
    if not tally.findings:
        return
    directory.mkdir(parents=True, exist_ok=True)
    alike: dict[str, list[Path]] = {}
    for number, found in enumerate(tally.findings):
        name = f"{found.case.target}-{time.strftime('%H%M%S')}-{number}"
        last = found.fault.strip().splitlines()[-1][:300]
        alike.setdefault(last, []).append(write_seed(directory, name, _with_why(found.case, found.fault)))
    for last, files in sorted(alike.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(files)} x {last}\n  {files[0]}")


def _with_why(case: Case, why: str) -> Case:
    return msgspec.structs.replace(case, why=why[-4000:])
