"""Kill exports, builds, bulk runs, first runs and downloads at random moments, and check what is left.

    python benchmarks/kills.py --kills 200

After each kill what was there before is there unchanged, or all of the new is; nothing begun is taken for
whole. The next run succeeds with the result of an undisturbed one, and removes what the killed one left.
Prints a Markdown table; the exit status is 1 if there was a fault. Needs the extra ``dev``, from a checkout.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kill_kinds import KINDS
from kill_server import Ended, RunServer, choose_moment
from kill_tools import Kind, tree

from support import stub_hub

STATUS_KILLED = -9


@dataclass
class Count:
    """What was seen of a kind."""

    kills: int = 0
    hits: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def kill_once(kind: Kind, server: RunServer, chance: random.Random, usual: Ended, count: Count) -> Ended:
    """Kill a run, check what is left, run again and check the result; return the undisturbed run."""
    kind.reset(chance)
    before = tree(kind.place)
    moment = choose_moment(chance, usual)
    ended = kind.run(server, moment)
    count.kills += 1
    count.hits += ended.status == STATUS_KILLED
    found = []
    if ended.status not in (0, STATUS_KILLED):
        found.append(f"the run failed with status {ended.status}: {ended.said[-500:]}")
    found += kind.faults(before)
    again = kind.run(server)
    if again.status:
        found.append(f"the next run failed with status {again.status}: {again.said[-500:]}")
    elif kind.result() != kind.wanted():
        found.append(f"the next run has another result: {kind.differences()}")
    found += [f"left behind: {name}" for name in kind.leftovers()]
    for fault in found:
        count.faults.append(f"{kind.name}, killed {moment}: {fault}")
        print(count.faults[-1], file=sys.stderr, flush=True)
    return again


def kill_all(kinds: Sequence[Kind], server: RunServer, kills: int, seed: int) -> dict[str, Count]:
    """Kill runs of all kinds, shared out as these say; return what was seen."""
    shares = sum(kind.share for kind in kinds)
    counts = {}
    for kind in kinds:
        chance, started = random.Random(f"{seed} {kind.name}"), monotonic()
        count = counts[kind.name] = Count()
        kind.prepare(server)
        kind.reset(chance)
        usual = kind.run(server)
        if usual.status:
            raise RuntimeError(f"an undisturbed run of {kind.name} failed: {usual.said[-2000:]}")
        for _ in range(max(1, round(kills * kind.share / shares))):
            # a busy machine is faster or slower by and by
            again = kill_once(kind, server, chance, usual, count)
            usual = replace(usual, seconds=again.seconds)
        count.seconds = monotonic() - started
        print(
            f"{kind.name}: {count.kills} kills, {count.hits} hit, {len(count.faults)} faults,"
            f" {count.seconds:.0f} s; a run takes {usual.seconds:.2f} s and {usual.changes} changes of files",
            file=sys.stderr,
            flush=True,
        )
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", default=",".join(names), help=f"kinds, of {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traces", type=Path, help="directory that keeps traced graphs")
    given = parser.parse_args(arguments)
    asked = given.only.split(",")
    if unknown := sorted({*asked} - {*names}):
        parser.error(f"there is no kind {', '.join(unknown)}; accepted: {', '.join(names)}")
    with TemporaryDirectory(prefix="kills-") as temporary, stub_hub.serve() as hub:
        work = Path(temporary)
        kinds = [kind(work / kind.name, hub) for kind in KINDS if kind.name in asked]
        (work / "tmp").mkdir()
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(work / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "TMPDIR": str(work / "tmp"),
            "KILLS_TRACES": str(given.traces or work / "traces"),
            "KILLS_EXPORT": "1" if any(kind.exports for kind in kinds) else "",
        }
        server = RunServer("kill_work", work / "log", environment)
        try:
            counts = kill_all(kinds, server, given.kills, given.seed)
        finally:
            server.close()
    print("| kind | kills | hit the run | faults | seconds |\n| --- | --- | --- | --- | --- |")
    for name, one in counts.items():
        print(f"| {name} | {one.kills} | {one.hits} | {len(one.faults)} | {one.seconds:.0f} |")
    total, hits = (sum(getattr(one, name) for one in counts.values()) for name in ("kills", "hits"))
    faults = [fault for one in counts.values() for fault in one.faults]
    print(f"| all | {total} | {hits} | {len(faults)} | {sum(one.seconds for one in counts.values()):.0f} |")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
