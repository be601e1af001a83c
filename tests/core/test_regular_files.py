"""Pipes and devices are refused wherever a file is read whose name comes from outside: none of these waits
for a writer, or reads without an end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlnext.errors import InputError
from controlnext.evaluation.calibration_data import read_examples
from controlnext.image_input import open_image
from controlnext.runtime.bulk.ledger import LEDGER
from controlnext.runtime.bulk.results import open_results
from controlnext.runtime.loras.tensor_file import read_tensors
from controlnext.runtime.media.image_files import unchanged
from controlnext.runtime.media.video_files import open_clip
from support.recipe import drawing


def _open_ledger(file: Path) -> None:
    (file.parent / LEDGER).symlink_to(file)
    with open_results(file.parent):
        pass


def _open_clip(file: Path) -> None:
    with open_clip(file, unchanged):
        pass


def _read_prompt(file: Path) -> None:
    folder = file.parent / "calibration"
    folder.mkdir()
    drawing(1, 8, 8).save(folder / "a.png")
    (folder / "a.txt").symlink_to(file)
    read_examples(folder)


READERS = {
    "image": open_image,
    "clip": _open_clip,
    "LoRA": read_tensors,
    "ledger": _open_ledger,
    "prompt": _read_prompt,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_nothing_but_files_is_opened(tmp_path: Path, reader: Callable[[Path], Any], kind: str) -> None:
    file = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"it is a pipe or a device, not a file|is a link, where"):
        reader(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"\xff\xfea", "it is not UTF-8"), (b"a" * (1 << 20 | 1), "it has more than 10485")],
)
def test_a_prompt_that_is_no_text_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    drawing(1, 8, 8).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read the prompt in .*a\.txt: {problem}"):
        read_examples(tmp_path)
