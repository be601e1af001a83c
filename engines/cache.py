"""Files that are slow to make and can be made again: complete, undamaged, or not there."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlnext.files import sha256

CHECKSUMS = "checksums.json"

logger = logging.getLogger(__name__)


def is_intact(folder: Path) -> bool:
    """Whether ``folder`` was made by :func:`store` and every file still has its checksum.

    Costs one reading of the files: about a second a gigabyte.
    """
    if not (folder / CHECKSUMS).is_file():
        return False
    damage = find_damage(folder)
    if damage:
        logger.warning("%s is damaged and made again: %s", folder, damage)
    return not damage


def find_damage(folder: Path) -> str:
    """What has happened to the files of ``folder`` since :func:`store` made it; empty where nothing has."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text())
        damaged = [name for name, checksum in wanted.items() if sha256(folder / name) != checksum]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{', '.join(damaged)}: not the checksum of when it was made" if damaged else ""


@contextmanager
def store(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``folder`` when the block ends well, replacing what was there.

    Several processes may do so at once: one of the results stays. Raises :class:`OSError` where nothing can
    be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        checksums = {path.name: sha256(path) for path in sorted(made.iterdir())}
        (made / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
        if folder.exists():
            folder.rename(Path(scratch) / "replaced")
        made.rename(folder)


def discard(folder: Path) -> None:
    """Remove what :func:`store` made, as far as that is allowed."""
    shutil.rmtree(folder, ignore_errors=True)


def processor() -> str:
    """Architecture, model and feature flags of this machine's processor.

    Weights that were laid out for one vector width do not suit another.
    """
    facts = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    fields = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU part", "Features")
    facts += [line for line in lines if line.partition(":")[0].strip() in fields]
    return "\n".join(facts)
