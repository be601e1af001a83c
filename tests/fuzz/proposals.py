"""Random changes of JSON and of bytes, of the kinds that :mod:`fuzz.changes` applies."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

OUTSIDE = "../outside/canary.txt"
"""A file beside the input that nothing may read or write."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63)),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 3.0000001),
    *("", " ", "x", "0", "1", "nan", "None", "a" * 300, "é\u202eabc", "\x1b[31mred\x1b[0m", "a\nb", "a\0b"),
    *(OUTSIDE, "/etc/passwd", "..", ".", "/", "C:\\windows\\x", "\\\\host\\share", "~/x", "a/../../b", "//x"),
    *("__class__", "{0.__class__}", "%s%n", "$(id)", "file:///etc/passwd", "http://127.0.0.1:9/x"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"b": {"c": []}}}),
)
TEXTS = (
    *("NaN", "Infinity", "-Infinity", "1" + "0" * 400, "1e999", '"\\ud800"', "0x10", "1_000", "'x'", ""),
    *("[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, '{"a":1,"a":2}', "1 2", "/*x*/1"),
)


def json_paths(content: Any, path: tuple[Any, ...] = ()) -> list[list[Any]]:
    """Return the paths of all values of a JSON document."""
    if not isinstance(content, (dict, list)):
        return [list(path)]
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    return [list(path)] + [found for key, value in inner for found in json_paths(value, (*path, key))]


def json_change(file: Path, name: str, rng: Random) -> dict[str, Any]:
    """Return a change of a value, a key or the type of something in the JSON ``file``, called ``name``."""
    content = json.loads(file.read_text())
    path = rng.choice(json_paths(content))
    if path and rng.random() < 0.3:
        # all keys of the document's outer levels are as likely as those of long lists
        path = path[: rng.randint(1, len(path))]
    kind = rng.choice(("set", "set", "near", "near", "remove", "rename", "text", "add", "swap"))
    return {"file": name, **_of_json(kind, content, path, rng)}


def _of_json(kind: str, content: Any, path: list[Any], rng: Random) -> dict[str, Any]:
    value = value_at(content, path)
    if kind == "near":
        return {"kind": "json-set", "path": path, "value": near(value, rng)}
    if kind == "remove" and path:
        return {"kind": "json-remove", "path": path}
    if kind == "rename" and path and isinstance(path[-1], str):
        return {"kind": "json-rename", "path": path, "to": near(path[-1], rng, texts_only=True)}
    if kind == "text":
        return {"kind": "json-text", "path": path, "text": rng.choice(TEXTS)}
    if kind == "add" and isinstance(value, dict):
        return {"kind": "json-set", "path": [*path, rng.choice(_KEYS)], "value": rng.choice(VALUES)}
    if kind == "swap":
        return {"kind": "json-set", "path": path, "value": value_at(content, rng.choice(json_paths(content)))}
    return {"kind": "json-set", "path": path, "value": rng.choice(VALUES)}


_KEYS = ("unknown", "", "__proto__", "unet.shallow", "../x", "a" * 5000, "\x1b]0;x\x07", "é")


def value_at(content: Any, path: list[Any]) -> Any:
    """Return the value at ``path`` of a JSON document."""
    for key in path:
        content = content[key]
    return content


def near(value: Any, rng: Random, texts_only: bool = False) -> Any:
    """Return a value like ``value`` that is another one: of another type, one off, mistyped."""
    if isinstance(value, str):
        cut = rng.randint(0, len(value))
        texts = (value + "x", value[:cut], value.upper(), value.swapcase(), f" {value}", value * 50)
        return rng.choice(texts if texts_only else (*texts, [value], {value: value}))
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, str(value), int(bool(value)), [value]))
    if isinstance(value, (int, float)):
        numbers = (value + 1, value - 1, -value, value * 2, value * 1000, value / 3, float(value), str(value))
        return rng.choice((*numbers, [value], [value, value]))
    if isinstance(value, list):
        turned = [value[::-1], value * 2, value[1:], value[:-1], [*value, None], {"0": value}]
        return rng.choice([*turned, value[0] if value else 0])
    return rng.choice((list(value.values()), list(value), {**value, "x": 1}, dict.fromkeys(value)))


def byte_change(file: Path, name: str, rng: Random) -> dict[str, Any]:
    """Return a change of a few bytes of a file, or of its length."""
    size = file.stat().st_size
    # headers are at the beginning, directories of ZIP files at the end
    at = rng.choice((rng.randint(0, size), min(size, rng.randint(0, 200)), max(0, size - rng.randint(0, 64))))
    kind = rng.choice(("flip", "flip", "flip", "cut", "truncate", "insert", "zeros", "length", "twice"))
    content = file.read_bytes()
    if kind == "flip":
        flipped = bytes(byte ^ (1 << rng.randint(0, 7)) for byte in content[at : at + rng.choice((1, 1, 4))])
        return _bytes(name, at, len(flipped), flipped)
    if kind == "cut":
        return _bytes(name, at, rng.choice((1, 2, 100, 5000)), b"")
    if kind == "truncate":
        return _bytes(name, at, size, b"")
    if kind == "insert":
        return _bytes(name, at, 0, rng.randbytes(rng.choice((1, 4, 64))))
    if kind == "zeros":
        count = rng.choice((4, 64, 1000))
        return _bytes(name, at, count, rng.choice((b"\0", b"\xff")) * count)
    if kind == "length":
        number = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, size, size + 1))
        return _bytes(name, at, 8, number.to_bytes(8, rng.choice(("little", "big"))))
    return _bytes(name, at, 0, content[at : at + 4096])


def _bytes(name: str, at: int, remove: int, insert: bytes) -> dict[str, Any]:
    return {"kind": "bytes", "file": name, "at": at, "remove": remove, "insert": insert.hex()}


def file_change(name: str, rng: Random) -> dict[str, Any]:
    """Return a change that leaves something else where the file ``name`` was."""
    to = f"{'../' * name.count('/')}{OUTSIDE}"
    return rng.choice(
        (
            {"kind": "remove", "file": name},
            {"kind": "directory", "file": name},
            {"kind": "pipe", "file": name},
            {"kind": "hole", "file": name, "size": rng.choice((0, 1, 10**9, 10**12))},
            {"kind": "link", "file": name, "to": to},
            {"kind": "link", "file": name, "to": rng.choice(("/dev/zero", "/dev/stdin", "loop", "."))},
            {"kind": "write", "file": name, "content": rng.choice(TEXTS)},
            {
                "kind": "move",
                "file": name,
                "to": near(name, rng, texts_only=True)[:200].strip("/ ") or "moved",
            },
        )
    )


def files_of(directory: Path) -> list[str]:
    """Return the names of all files of an input, relative to it."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
