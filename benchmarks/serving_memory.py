"""The memory of a server over many requests, part of ``benchmarks/serving.py``."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

AT_ONCE = 4
"""Clients that send one request after the other."""


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Serve ``bundle`` in a process of its own; yield the URL, once it is ready, and the process's number."""
    command = [sys.executable, "-m", "controlnext", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[3], process.pid
        finally:
            process.terminate()


def resident_bytes(process: int) -> int:
    """Return the memory of a process that is in use."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_over_requests(
    bundle: Path, requests: int = 1000, every: int = 50, side: int = 64, steps: int = 4
) -> list[int]:
    """Return the server's memory in bytes after each ``every`` of so many requests, four at a time."""
    with serving(bundle) as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        call = {"prompt": "a red circle", "control_image": _image(side), "num_inference_steps": steps}

        def send(number: int) -> None:
            answer = client.post("/v1/images/generations", json={**call, "seed": number})
            answer.raise_for_status()

        sizes = []
        with ThreadPoolExecutor(AT_ONCE) as clients:
            for first in range(0, requests, every):
                list(clients.map(send, range(first, min(first + every, requests))))
                sizes.append(resident_bytes(process))
        return sizes


def growth(sizes: Sequence[int]) -> float:
    """Return by how much the memory grew after the first of ``sizes``: 0.02 is two percent."""
    return max(sizes) / sizes[0] - 1


def _image(side: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
