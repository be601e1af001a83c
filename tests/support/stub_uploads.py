"""What the stub of the hub does with uploads: commits of regular files."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def git_oid(content: bytes) -> str:
    """Return git's name of a file's content, by which the library tells files that did not change."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def upload_modes(folder: Path, files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return how each file is to be sent, and what the repository has of that name."""
    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": git_oid(there.read_bytes()) if (there := folder / file["path"]).is_file() else None,
            }
            for file in files
        ]
    }


def committed(folder: Path, body: bytes) -> tuple[Path, list[str]]:
    """Return a new directory with the content of ``folder`` after a commit, and the files that were sent."""
    lines = [json.loads(line) for line in body.splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    made = next(path for path in _names(folder) if not path.exists())
    shutil.copytree(folder, made)
    for name, content in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(base64.b64decode(content))
    return made, sorted(files)


def _names(folder: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield folder.parent / f"{folder.name}-{number}"
        number += 1
