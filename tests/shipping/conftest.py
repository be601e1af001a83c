"""What is shipped: one wheel and one environment that it is installed in, for all tests of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.exports import once
from support.wheels import CleanEnvironment, build_sdist, build_wheel, copy_checkout, install


def _build(folder: Path) -> None:
    folder.mkdir()
    checkout = copy_checkout(folder / "checkout")
    sdist = build_sdist(checkout, folder / "sdist")
    build_wheel(checkout, folder / "wheel")
    build_wheel(sdist, folder / "wheel-of-sdist")


@pytest.fixture(scope="session")
def built(shared_folder: Path) -> Path:
    """Return a directory with ``sdist/``, ``wheel/`` and ``wheel-of-sdist/``, a file in each."""
    return once(shared_folder / "built", _build)


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    """Return the wheel that the sdist gives."""
    return next((built / "wheel-of-sdist").iterdir())


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """Return a clean environment with the wheel, to serve on processors."""
    return install(wheel, tmp_path_factory.mktemp("clean") / "env", ["cpu", "serve"])
