"""Changes of the files of an input, as data: a case can be kept and made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "controlnext.json"


def apply(changes: list[dict[str, Any]], directory: Path) -> None:
    """Apply changes, in their order, to the input in ``directory``, whose files may be hard links."""
    for change in changes:
        arguments = {key: value for key, value in change.items() if key != "kind"}
        file = directory / arguments.pop("file")
        _KINDS[change["kind"]](file, directory=directory, **arguments)


def _replace(file: Path, content: bytes) -> None:
    _remove(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _remove(file: Path, **_: Any) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _json(file: Path, path: list[Any], change: Callable[[Any, Any], None]) -> None:
    content = json.loads(file.read_text())
    if not path:
        holder = [content]
        change(holder, 0)
        content = holder[0] if holder else None
    else:
        at = content
        for key in path[:-1]:
            at = at[key]
        change(at, path[-1])
    _replace(file, json.dumps(content, indent=2).encode())


def _json_set(file: Path, path: list[Any], value: Any, **_: Any) -> None:
    def change(holder: Any, key: Any) -> None:
        holder[key] = value

    _json(file, path, change)


def _json_remove(file: Path, path: list[Any], **_: Any) -> None:
    def change(holder: Any, key: Any) -> None:
        del holder[key]

    _json(file, path, change)


def _json_rename(file: Path, path: list[Any], to: str, **_: Any) -> None:
    def change(holder: Any, key: Any) -> None:
        if isinstance(holder, dict):
            holder[to] = holder.pop(key)

    _json(file, path, change)


def _json_number(file: Path, path: list[Any], text: str, **_: Any) -> None:
    """Set a value that JSON libraries do not write: NaN, a number of 400 digits, a lone surrogate."""
    mark = "7c1d0f5e-mark"
    _json_set(file, path, mark)
    _replace(file, file.read_bytes().replace(f'"{mark}"'.encode(), text.encode("utf-8", "surrogatepass")))


def _bytes(file: Path, at: int, remove: int, insert: str, **_: Any) -> None:
    """Replace ``remove`` bytes from ``at`` on by those of ``insert``, in hexadecimal digits."""
    content = file.read_bytes()
    _replace(file, content[:at] + bytes.fromhex(insert) + content[at + remove :])


def _write(file: Path, content: str, **_: Any) -> None:
    _replace(file, content.encode("utf-8", "surrogatepass"))


def _hole(file: Path, size: int, **_: Any) -> None:
    """Make the file as large as ``size``, of which the disk holds nothing."""
    content = file.read_bytes() if file.is_file() else b""
    _replace(file, content[:size])
    os.truncate(file, size)


def _directory(file: Path, **_: Any) -> None:
    _remove(file)
    file.mkdir(parents=True)


def _link(file: Path, to: str, **_: Any) -> None:
    _remove(file)
    file.symlink_to(to)


def _pipe(file: Path, **_: Any) -> None:
    _remove(file)
    os.mkfifo(file)


def _move(file: Path, directory: Path, to: str) -> None:
    (directory / to).parent.mkdir(parents=True, exist_ok=True)
    file.rename(directory / to)


def _relist(file: Path, **_: Any) -> None:
    """Make size and checksum of a file right in the manifest of its bundle."""
    bundle = next(parent for parent in file.parents if (parent / MANIFEST).exists())
    content = json.loads((bundle / MANIFEST).read_text())
    data = file.read_bytes() if file.is_file() else b""
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    content["files"][file.relative_to(bundle).as_posix()] = entry
    _replace(bundle / MANIFEST, json.dumps(content, indent=2).encode())


_KINDS: dict[str, Callable[..., None]] = {
    "json-set": _json_set,
    "json-remove": _json_remove,
    "json-rename": _json_rename,
    "json-text": _json_number,
    "bytes": _bytes,
    "write": _write,
    "hole": _hole,
    "remove": _remove,
    "directory": _directory,
    "link": _link,
    "pipe": _pipe,
    "move": _move,
    "relist": _relist,
}
