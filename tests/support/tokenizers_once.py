"""Cache of tokenizers in a process: reading one of 49,408 tokens is most of the time of reading a base."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Read = Callable[[Path, Any, Mapping[str, Any]], str]


def read_once(read: Read) -> Read:
    """Return ``read`` with a cache by files and arguments; results with warnings are not cached."""
    kept: dict[str, str] = {}

    @functools.wraps(read)
    def tokenizer(directory: Path, network: Any, config: Mapping[str, Any]) -> str:
        digest = hashlib.sha256(f"{directory.name} {network!r} {sorted(config.items())}".encode())
        for part in _files(directory):
            digest.update(part)
        key = digest.hexdigest()
        if key in kept:
            return kept[key]
        said = _Said()
        logger = logging.getLogger("controlnext")
        logger.addHandler(said)
        try:
            content = read(directory, network, config)
        finally:
            logger.removeHandler(said)
        if not said.anything:
            kept[key] = content
        return content

    return tokenizer


def _files(directory: Path) -> Iterator[bytes]:
    """Yield the files of the directory, and of the index beside it, which names the tokenizer's class."""
    for path in [directory.parent / "model_index.json", *sorted(directory.glob("*"))]:
        if path.is_file():
            yield path.name.encode()
            yield path.read_bytes()


class _Said(logging.Handler):
    anything = False

    def emit(self, _record: logging.LogRecord) -> None:
        self.anything = True
