"""The soak test in small, with fake bundles: every phase, results as in a fresh process; what it counts as
growth. The comparison of numbers at the edges."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numbers_at_edges
import numpy as np
import pytest
import soak
from soak_calls import Result
from soak_meter import Meter, Reading, SoakPhase

from support.fake_bundle import write_fake_bundle
from support.fake_clips import write_fake_clips
from support.fake_loras import write_fake_lora

SMALL = ["--images", "8", "--clips", "4", "--loads", "2", "--kinds", "4", "--engine-threads", "1"]
CALM = Reading(100.0, 10, 4, 7)


def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No result differs. What a few readings say of memory and threads is not looked at."""
    images = write_fake_bundle(
        tmp_path / "images", "sd15", shallow=True, encoder=True, lora_rank=4, controls=2
    )
    (tmp_path / "images-loras").mkdir()
    for seed, name in enumerate(("a", "b")):
        write_fake_lora(tmp_path / "images-loras" / f"{name}.safetensors", seed, networks=("unet",))
    bundles = [f"--bundle={images}", f"--clip-bundle={write_fake_clips(tmp_path / 'clips')}"]
    monkeypatch.setattr(soak, "LOADED_KINDS", 1)
    with suppress(SystemExit):
        soak.main([*SMALL, *bundles])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert len(rows) in (7, 8)
    assert {row[2] for row in rows} == {"0"}
    assert [int(row[1]) for row in rows] == [8, 4, 4, 4, 2, *[2] * (len(rows) - 6), 2]


def test_what_grows_is_a_fault() -> None:
    """From the first to the last quarter, after the warm-up."""
    assert not SoakPhase("calm", 20, 0, 1.0, [Reading(1.0, 0, 0, 0)] * 4 + [CALM] * 16).faults
    grown = Reading(120.0, 11, 5, 8)
    faults = SoakPhase("growing", 20, 1, 1.0, [CALM] * 16 + [grown] * 4).faults
    assert len(faults) == 5
    assert "1 results differ" in faults[0]
    assert "memory grew by 20.0 MB" in faults[1]


def test_what_is_held_is_seen(tmp_path: Path) -> None:
    """A file, a handle and memory that stay."""
    meter, kept = Meter([tmp_path]), list[Any]()

    def work() -> Any:
        for number in range(20):
            kept.append(((tmp_path / str(number)).open("w"), b"x" * 4_000_000))
            yield True

    faults = meter.measure("leaks", work(), 20).faults
    for handle, _ in kept:
        handle.close()
    assert {fault.split()[0].strip(":") for fault in faults} >= {"memory", "handles", "files"}


def test_a_digest_is_of_every_bit() -> None:
    zero, negative = (Result(np.array([value], np.float32), np.zeros(1)) for value in (0.0, -0.0))
    assert zero.digest != negative.digest


@pytest.mark.export
def test_numbers_at_the_edges(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model that is there, in place of the script's own exports."""

    def export(_checkpoint: Any, _precision: str, bundle: Path) -> None:
        shutil.copytree(tiny("sd15"), bundle)

    monkeypatch.setattr(numbers_at_edges, "export_bundle", export)
    monkeypatch.setattr(numbers_at_edges, "SIZES", [(1, 8)])
    with pytest.raises(SystemExit) as stop:
        numbers_at_edges.main(["--family", "sd15", "--only", "sizes"])
    out = capsys.readouterr().out
    assert not stop.value.code, out
    assert "| sd15 | 64 x 8 |" in out
