"""Wheels of the checkout, and clean environments that they are installed in; no package index is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"controlnext": "controlnext", **PROJECT["tool"]["setuptools"]["package-dir"]}
"""Packages that have a directory of the top level to themselves, by its name."""
_LEFT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def copy_checkout(target: Path) -> Path:
    """Copy the checkout, without what was built in it; return ``target``."""
    shutil.copytree(ROOT, target, ignore=_LEFT, symlinks=True)
    return target


def build_wheel(source: Path, output: Path) -> Path:
    """Build the wheel of a checkout or of an sdist into ``output``, with the setuptools that is here."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    _run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", output, source], output.parent)
    (wheel,) = output.glob("*.whl")
    return wheel


def build_sdist(checkout: Path, output: Path) -> Path:
    """Build the sdist of a checkout into ``output``, as a build frontend does."""
    output.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(output)!r})"
    _run([sys.executable, "-c", code], checkout)
    (sdist,) = output.glob("*.tar.gz")
    return sdist


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment with the wheel, and of other packages only those that the wheel asks for."""

    root: Path

    def run(self, program: str, *arguments: object, cwd: Path) -> str:
        """Run a program of the environment in ``cwd``; return its stdout. It must succeed."""
        return _run([self.root / "bin" / program, *arguments], cwd, self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables of its programs: none of the test's own."""
        return {"PATH": f"{self.root}/bin:/usr/bin:/bin", "HOME": str(self.root), "OMP_NUM_THREADS": "1"}


def install(wheel: Path, root: Path, extras: Iterable[str]) -> CleanEnvironment:
    """Make a virtual environment at ``root`` with a wheel and what it needs with ``extras``."""
    make_environment(root)
    add_wheel(wheel, root, extras)
    return CleanEnvironment(root)


def make_environment(root: Path) -> None:
    """Make a virtual environment without pip, of the suite's Python."""
    _run([sys.executable, "-m", "venv", "--without-pip", root], root.parent)


def add_wheel(wheel: Path, root: Path, extras: Iterable[str]) -> None:
    """Install a wheel into an environment, with links to the suite's packages that its metadata leads to."""
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    _run([sys.executable, "-m", "pip", "--python", root / "bin/python", "install", *options, wheel], root)
    (packages,) = (root / "lib").glob("python*/site-packages")
    for name in needed(wheel, extras):
        for path in _top_level(name):
            link = packages / path.name
            if not link.exists():
                link.symlink_to(path)


def needed(wheel: Path, extras: Iterable[str]) -> set[str]:
    """Return the packages, by their canonical names, that a wheel needs with ``extras``, and they in turn."""
    metadata = next(data for name, data in contents(wheel).items() if name.endswith("dist-info/METADATA"))
    left = _asked(HeaderParser().parsestr(metadata.decode()).get_all("Requires-Dist") or (), extras)
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        one = left.pop()
        entry = canonicalize_name(one.name), frozenset(one.extras)
        if entry in seen:
            continue
        seen.add(entry)
        found.add(entry[0])
        try:
            left += _asked(distribution(one.name).requires or (), one.extras)
        except PackageNotFoundError as error:
            raise AssertionError(f"the suite lacks {one}, which {wheel.name} needs") from error
    return found


def _asked(requirements: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    wanted = [{"extra": ""}, *({"extra": extra} for extra in extras)]
    every = map(Requirement, requirements)
    return [one for one in every if one.marker is None or any(map(one.marker.evaluate, wanted))]


def _top_level(name: str) -> set[Path]:
    """Return what a package has directly in site-packages."""
    package = distribution(name)
    roots = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
    return {Path(str(package.locate_file(root))) for root in roots}


def _run(command: list[object], cwd: Path, variables: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
