"""The fuzzer in small: what was found once stays mended, a few new cases of every target pass, and every
kind of fault is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = 51

FAULTS = {
    "crashed": "os.abort()",
    "hung": "while True: pass",
    "broken": "raise KeyError('x')",
    "trespassed": "open(directory / '../outside/canary.txt').read()",
    "left behind": "os.mkfifo(directory.parent / 'more')",
    "refused without a message": "raise InputError('')",
    "a message with the character": "raise Refused('\\x1b[31m')",
    "refused, and left half": "(output / 'half').touch(); raise InputError('x')",
    "another result": "return 'another'",
}
PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
import os
from pathlib import Path
from controlnext.errors import InputError
from fuzz.campaign import Campaign
from fuzz.target import Case, Refused, Target

class Faulty(Target):
    name, seconds = "faulty", 1
    def write_sound(self, directory):
        directory.mkdir()
    def propose(self, sound, rng):
        return Case("faulty", [dict(kind="write", file="changed", content="x")], "same")
    def attempt(self, directory, output):
        if (directory / "changed").exists():
            {fault}
        return "sound"

campaign = Campaign(dict(faulty=Faulty()), Path({root!r}))
for tally in campaign.run(iter([Faulty().propose(None, None)]), 1):
    print(tally.findings[0].fault if tally.findings else "nothing found")
"""


def test_seeds_and_a_few_cases_show_no_fault(tmp_path: Path) -> None:
    """In a process of its own: each case is a fork, for which the suite's threads are no good."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--jobs", "1"]
    done = subprocess.run(
        [*command, "--findings", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert " cases, 0 faults" in done.stdout


@pytest.mark.parametrize("found", FAULTS)
def test_every_kind_of_fault_is_noticed(found: str, tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(ROOT / "tests"), fault=FAULTS[found], root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(found), done.stdout + done.stderr
