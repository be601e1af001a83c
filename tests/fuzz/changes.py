"""Changes of the files of an input, as data: a case can be kept and made again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.makers import MAKERS

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


def read_document(file: Path) -> Any:
    """Return the JSON document in a file: all of it, or the header of a file of tensors; of a ``.jsonl`` file
    the list of those in its lines."""
    text = _divided(file)[1]
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def _written(file: Path, content: Any) -> bytes:
    if file.suffix == ".jsonl" and isinstance(content, list):
        return "".join(f"{json.dumps(line)}\n" for line in content).encode()
    return json.dumps(content, indent=2).encode()


def _divided(file: Path) -> tuple[bool, bytes, bytes]:
    """Return whether the file has tensors, its JSON, and what follows that."""
    content = file.read_bytes()
    if file.suffix != ".safetensors":
        return False, content, b""
    end = 8 + int.from_bytes(content[:8], "little")
    return True, content[8:end], content[end:]


def _with_document(file: Path, text: bytes) -> None:
    tensors, _, data = _divided(file)
    _replace(file, (len(text).to_bytes(8, "little") if tensors else b"") + text + data)


def _json(file: Path, path: list[Any], change: Callable[[Any, Any], None]) -> None:
    content = read_document(file)
    if not path:
        holder = [content]
        change(holder, 0)
        content = holder[0] if holder else None
    else:
        at = content
        for key in path[:-1]:
            at = at[key]
        change(at, path[-1])
    _with_document(file, _written(file, content))


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
    known = _divided(file)[1]
    _with_document(file, known.replace(f'"{mark}"'.encode(), text.encode("utf-8", "surrogatepass")))


def _bytes(file: Path, at: int, remove: int, insert: str, **_: Any) -> None:
    """Replace ``remove`` bytes from ``at`` on by those of ``insert``, in hexadecimal digits."""
    content = file.read_bytes()
    _replace(file, content[:at] + bytes.fromhex(insert) + content[at + remove :])


def _json_image(file: Path, path: list[Any], before: str, made: dict[str, Any], cut: int, **_: Any) -> None:
    """Set a value to the base64 of an odd image, without its last ``cut`` characters."""
    text = base64.b64encode(MAKERS[made["maker"]](**made["options"])).decode()
    _json_set(file, path, before + text[: len(text) - cut])


def _make(file: Path, maker: str, options: dict[str, Any], **_: Any) -> None:
    """Replace the file by one of :data:`fuzz.makers.MAKERS`."""
    _replace(file, MAKERS[maker](**options))


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
    if not (directory / to).is_dir():
        file.rename(directory / to)


class _Payload:
    """Writes to a file outside when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("../outside/canary.txt", "w")


def _payload(file: Path, form: str, **_: Any) -> None:
    """Replace the file by a pickle with code in it, in a form that torch reads or a bare one."""
    import torch

    content, written = {"tensor": torch.ones(2), "payload": _Payload()}, io.BytesIO()
    if form in ("zip", "legacy"):
        torch.save(content, written, _use_new_zipfile_serialization=form == "zip")
    elif form == "tar":
        with tarfile.open(fileobj=written, mode="w") as archive:
            for name in ("pickle", "storages", "tensors"):
                data = pickle.dumps(_Payload())
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    else:
        pickle.dump(content, written)
    _replace(file, written.getvalue())


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
    "json-image": _json_image,
    "make": _make,
    "write": _write,
    "hole": _hole,
    "remove": _remove,
    "directory": _directory,
    "link": _link,
    "pipe": _pipe,
    "move": _move,
    "payload": _payload,
    "relist": _relist,
}
