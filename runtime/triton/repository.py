"""Writing a bundle as a model of a Triton model repository."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlnext.bundle.files import MANIFEST, check_here, check_replaceable, new_folder
from controlnext.bundle.format import ENGINES, check_file
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError, WorkError
from controlnext.families import get_family
from controlnext.runtime.triton.model_config import model_config
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.runtime.warm_up import check_takes_prompts

VERSION, BUNDLE = "1", "bundle"
"""The directory of a model's only version, and in it that of its bundle."""
_KIND = {"marker": f"{VERSION}/{BUNDLE}/{MANIFEST}", "kind": "Triton model"}
"""By what a model is known, and how it is called where it is in the way."""
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Why files cannot be linked: another disk, or a file system or a directory that does not allow it."""
_MODEL = '''"""The model for Triton's Python backend; controlnext must be installed where that runs."""

from controlnext.runtime.triton.model import TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class WrittenModel:
    """A model that was written: its directory, the bytes of its bundle, and how many of them are copies (the
    others are linked)."""

    directory: Path
    bytes: int
    copied: int

    @property
    def name(self) -> str:
        """The model's name."""
        return self.directory.name


def write_model(
    bundle: Path,
    output: Path,
    settings: TritonSettings,
    *,
    name: str | None = None,
    decoupled: bool = True,
    force: bool = False,
) -> WrittenModel:
    """Write ``bundle`` as a model into the model repository ``output``, which may have others.

    The model is complete by itself: it works where its directory is copied to. Its files are linked to those
    of the bundle where both are on one disk, and take no room there; else they are copied.

    Args:
        name: of the model; by default that of the bundle's directory.
        decoupled: whether a request may have several responses, which partial images need.
        force: replace a model of that name.

    Raises:
        BundleError: the directory is not a bundle, or a file is missing, truncated or damaged.
        InputError: a name that Triton does not take, a bundle that makes clips or has no text encoders, or
            an output that cannot be written or is taken.
        WorkError: the disk has not enough room.
    """
    check_here(output, "output")
    name = _checked_name(bundle.resolve().name if name is None else name)
    target = output / name
    check_replaceable(target, force, **_KIND)
    manifest = _check_bundle(bundle)
    with new_folder(target, force, **_KIND) as aside:
        version = aside / VERSION
        version.mkdir()
        (aside / "config.pbtxt").write_text(model_config(settings, decoupled))
        (version / "model.py").write_text(_MODEL)
        total, copied = _place_bundle(bundle, manifest, version / BUNDLE)
    return WrittenModel(target, total, copied)


def _check_bundle(bundle: Path) -> Manifest:
    manifest = read_manifest(bundle)
    family = get_family(manifest.family)
    if family.task != "image":
        raise InputError(
            f"{bundle} makes clips, which take longer than a request to Triton should; serve it with"
            " controlnext serve, where clips are jobs"
        )
    check_takes_prompts(bundle, manifest, family)
    for file in manifest.files:
        check_file(bundle, manifest, file)
    return manifest


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"name is {name!r}; accepted are letters, digits, '_', '-' and '.', the first a letter, digit or"
            " '_'; give another with `name`",
            argument="name",
        )
    return name


def _place_bundle(bundle: Path, manifest: Manifest, target: Path) -> tuple[int, int]:
    """Link or copy a bundle's files to ``target``; return their bytes, and those of the copies."""
    listed = [(name, bundle / name) for name in manifest.files]
    # linking would change the time by which the cache of engines knows that they are intact
    copies = [(MANIFEST, bundle / MANIFEST), *_engine_files(bundle)]
    links = [(name, path) for name, path in listed if _link(path, target / name)]
    copies += [pair for pair in listed if pair not in links]
    copied = _size(copies)
    if copied > (free := shutil.disk_usage(target.parent).free):
        raise WorkError(
            f"the model needs {copied:,} bytes and the disk has {free:,}; give an `output` on the disk of the"
            " bundle, where its files are linked, or make room"
        )
    for name, path in copies:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    return copied + _size(links), copied


def _engine_files(bundle: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of what is in the engines' directory, but for what is being written."""
    for path in sorted((bundle / ENGINES).rglob("*")):
        name = path.relative_to(bundle)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _link(path: Path, target: Path) -> bool:
    """Make ``target`` a hard link of a file; return False where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _size(files: list[tuple[str, Path]]) -> int:
    return sum(path.stat().st_size for _, path in files)
