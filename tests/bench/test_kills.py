"""The kill campaign in small: of each kind that needs no export a few kills."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest


def test_kills_leave_what_was_there_or_all_that_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    status = kills.main(["--kills", "8", "--only", "build,batch,caches,copies"])
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert status == 0, rows
    assert [(row[0], row[3]) for row in rows] == [
        (f"| {name}", "0") for name in ("build", "batch", "caches", "copies", "all")
    ]
    assert all(int(row[1]) >= int(row[2]) for row in rows)
    assert int(rows[-1][1]) >= 8


@pytest.mark.export
def test_a_killed_export(capsys: pytest.CaptureFixture[str], shared_folder: Path) -> None:
    assert kills.main(["--kills", "2", "--only", "export", f"--traces={shared_folder / 'traces'}"]) == 0
    assert "| export | 2 |" in capsys.readouterr().out


def test_a_kind_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kills.main(["--only", "exports"])
    assert "there is no kind exports; accepted: export, int8, build" in capsys.readouterr().err
