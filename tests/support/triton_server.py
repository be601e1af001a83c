"""A real Triton Inference Server on loopback, where there is one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SERVER, PACKAGES = "TRITONSERVER", "TRITON_PACKAGES"
"""Variables: the path to tritonserver, if it is not on PATH; a directory of packages that its Python has
before those of the tests: servers up to 24.10 need one with numpy<2."""
STUB = "triton_python_backend_stub"
_PATIENCE = 120
"""Seconds for a server to load its models."""


def find_server() -> Path:
    """Return the path to tritonserver; skip the test, and say why, where there is none for this Python."""
    found = shutil.which(os.environ.get(SERVER, "tritonserver"))
    if found is None:
        assert SERVER not in os.environ, f"{SERVER} is {os.environ[SERVER]}, which is no program"
        pytest.skip(f"no tritonserver on PATH or in {SERVER}")
    server = Path(found).resolve()
    if not _stubs(server):
        pytest.skip(f"{server} has no Python backend for Python {_python()}")
    return server


@contextmanager
def triton_server(repository: Path, scratch: Path) -> Iterator[httpx.Client]:
    """Serve a model repository; yield a client. ``scratch``: a directory for the server's files."""
    server = find_server()
    backends, log = _backends(server, scratch), scratch / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [server, "--model-repository", repository, "--backend-directory", backends]
    command += ["--http-address", "127.0.0.1", "--http-port", str(port), "--exit-timeout-secs", "10"]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    # its models' interpreter looks for packages in the working directory first
    options = {"cwd": scratch, "env": _env(server)}
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, **options) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE) as client:
                _wait(client, process, log)
                yield client
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(_PATIENCE * 10):
        if process.poll() is not None:
            break
        try:
            if client.get("/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        sleep(0.1)
    pytest.fail(f"tritonserver did not become ready:\n{log.read_text(errors='replace')}")


def _env(server: Path) -> dict[str, str]:
    """Return the environment of the server: that of the wheel of nvidia-pytriton has its libraries beside."""
    libraries = server.parents[3] / "nvidia_pytriton.libs"
    return {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries.is_dir() else {})}


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _stubs(server: Path) -> list[Path]:
    """Return where the program may be that runs models with this Python: where the wheel has it, or the
    container."""
    home = server.parents[1]
    found = [home / "python_backend_stubs" / _python() / STUB, home / "backends" / "python" / STUB]
    return [path for path in found if path.is_file()]


def _backends(server: Path, scratch: Path) -> Path:
    """Make a directory of backends, and in that of Python links to all packages that the tests have.

    It is on the path of the models' interpreter, which reads no PYTHONPATH.
    """
    backends = scratch / "backends"
    python = backends / "python"
    shutil.copytree(server.parents[1] / "backends" / "python", python)
    shutil.copy(_stubs(server)[0], python / STUB)
    for file in (server, python / STUB):
        # a wheel that was unpacked by hand has lost it
        file.chmod(0o755)
    first = [Path(os.environ[PACKAGES])] if PACKAGES in os.environ else []
    _link_all([*first, *(Path(entry) for entry in sys.path if entry.endswith("-packages"))], python)
    package = python / "controlnext"
    package.mkdir()
    folders = [path for path in (ROOT / "controlnext").iterdir() if path.suffix != ".pyc"]
    for path in [*folders, *(ROOT / name for name in ("export", "engines", "runtime"))]:
        (package / path.name).symlink_to(path)
    return backends


def _link_all(directories: list[Path], target: Path) -> None:
    for directory in directories:
        for path in directory.iterdir():
            if not (target / path.name).exists() and path.name != "controlnext":
                (target / path.name).symlink_to(path)
