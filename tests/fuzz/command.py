"""The command line of the fuzzer."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fuzz.campaign import Campaign, Finding, Tally, read_seeds, write_seed
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
    unknown = set(target or ()) - TARGETS.keys()
    if unknown:
        raise typer.BadParameter(f"unknown target {min(unknown)}; accepted: {', '.join(TARGETS)}")
    chosen = {name: TARGETS[name] for name in target or TARGETS}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        campaign = Campaign(chosen, Path(root))
        seeds = [case for case in read_seeds(SEEDS) if case.target in chosen]
        until = time.monotonic() + 60 * minutes if minutes else float("inf")
        tally = _run(campaign.run(_all(campaign, seeds, seed, minutes, cases), jobs, until), findings)
    _report(tally)
    raise typer.Exit(1 if tally.findings else 0)


def _run(tallies: Iterator[Tally], findings: Path) -> Tally:
    """Run until there are no more or Ctrl-C comes, keep what is found, and tell how far it is."""
    tally, told, written = Tally(), time.monotonic(), 0
    with suppress(KeyboardInterrupt):
        for tally in tallies:
            for found in tally.findings[written:]:
                _keep(found, findings)
            written = len(tally.findings)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{tally.cases} cases, {written} faults", flush=True)
    return tally


def _all(campaign: Campaign, seeds: list[Case], seed: int, minutes: float, cases: int) -> Iterator[Case]:
    proposed = campaign.proposals(seed)
    return itertools.chain(seeds, proposed if minutes and not cases else itertools.islice(proposed, cases))


def _keep(found: Finding, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{found.case.target}-{time.time_ns():x}"
    case = msgspec.structs.replace(found.case, why=found.fault[-4000:])
    lines = found.fault.strip().splitlines()
    print(f"{write_seed(directory, name, case)}: {lines[0][:300]} ... {lines[-1][:300]}", flush=True)


def _report(tally: Tally) -> None:
    for (name, kind), count in sorted(tally.outcomes.items()):
        print(f"{name}: {count} {kind}")
    print(f"{tally.cases} cases, {len(tally.findings)} faults")
