"""Graphs whose files are symbolic links, such as those in a hub's cache, for libraries that refuse these."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controlnext.bundle.format import ENGINES
from controlnext.bundle.scratch import scratch_directory, temporary_directory


@contextmanager
def plain_files(graph: Path) -> Iterator[Path]:
    """Yield the path of a graph beside whose file its weights are, none of them a symbolic link.

    ONNX Runtime and OpenVINO read weights only in the directory of the graph, wherever links lead. Then the
    files of the directory have hard links, or where these cannot be copies, in a temporary one. What mapped
    them may go on using them when the block has ended.
    """
    files = [path for path in graph.parent.iterdir() if path.is_file()]
    if not any(path.is_symlink() for path in files):
        yield graph
        return
    with _scratch(graph.parent.parent) as directory:
        for path in files:
            _link(path, directory / path.name)
        yield directory / graph.name


@contextmanager
def _scratch(bundle: Path) -> Iterator[Path]:
    """Yield a temporary directory in the bundle, which is likely to be on the disk of its files, or else
    where temporary files are."""
    with ExitStack() as stack:
        try:
            (bundle / ENGINES).mkdir(exist_ok=True)
            made = stack.enter_context(scratch_directory(bundle / ENGINES, "plain"))
        except OSError:
            made = stack.enter_context(temporary_directory("plain"))
        yield made


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)
