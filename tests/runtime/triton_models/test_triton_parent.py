"""A model's process does not outlive the server."""

from __future__ import annotations

import subprocess
import sys

from support.gate import PATIENCE

_CHILD = """
import time
from controlnext.runtime.triton import parent
parent._PAUSE = 0.05
parent.ParentWatch()
print("watches", flush=True)
time.sleep(600)
"""
_PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
assert child.stdout.readline() == b"watches\\n"
os._exit(0)
"""


def test_a_process_ends_after_its_parent() -> None:
    """The child has its parent's stderr, which is open until both have ended."""
    command = [sys.executable, "-c", _PARENT, _CHILD]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    assert done.stderr == b""
