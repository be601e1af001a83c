"""The benchmark that kills a bulk run."""

from __future__ import annotations

from pathlib import Path

import bulk_kills
import pytest

from support.fake_bundle import write_fake_bundle


def test_killing_a_bulk_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every job is done once, with the bytes of a call, which are those of no other job."""
    bulk_kills.main([str(write_fake_bundle(tmp_path / "bundle")), "--jobs", "12", "--kills", "1"])
    rows = capsys.readouterr().out
    assert "| 12 of 12, 12 lines, 12 files |" in rows
    assert "| different images | 12 |" in rows
    assert "in 1 that hit;" in rows
    assert "| files that differ by a byte from those of calls | 0 |" in rows
