"""Ctrl-C ends a command at once: status 130, no traceback, nothing half written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from controlnext.cli.console import progress


@pytest.mark.parametrize("reported", [True, False])
def test_an_interrupt_that_a_library_swallows_ends_the_work_all_the_same(reported: bool) -> None:
    """KeyboardInterrupt is raised at the next report, or at the end of the block."""

    def work() -> None:
        with progress(quiet=True) as report:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            if reported:
                report("what comes next", 0.5)
                pytest.fail("the work went on")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_an_interrupt_in_a_callback_of_pythons_own_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it swallows the exception, and would print a traceback; other exceptions it prints."""

    class Key:
        pass

    def interrupt(_reference: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def fail(_reference: object) -> None:
        raise ValueError("another")

    def work() -> None:
        with progress(quiet=True):
            one, two = Key(), Key()
            references = weakref.ref(one, interrupt), weakref.ref(two, fail)
            del one, two
            assert references

    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(one.exc_type))
    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == [ValueError]


def test_an_interrupt_while_the_command_is_imported_ends_it() -> None:
    """Status 130 and no traceback from the first second on."""
    code = """
import sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from controlnext.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.export
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, tiny_checkpoint_dir: Path) -> None:
    """Ctrl-C during an export: status 130, no traceback, no partial files."""
    target = tmp_path / "new" / "bundle"
    command = [sys.executable, "-m", "controlnext", "export", "--model", "sdxl", "--output", str(target)]
    sources = [f"--base={tiny_checkpoint_dir}/base", f"--control={tiny_checkpoint_dir}/control.safetensors"]
    process = subprocess.Popen(
        [*command, *sources], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(target.parent.glob(".bundle.*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(target.parent.iterdir()) == []
