"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipe import drawing


@pytest.fixture
def outline(tmp_path: Path) -> Path:
    """Write a control image of 64 x 48 pixels."""
    path = tmp_path / "outline.png"
    drawing(1, 64, 48).save(path)
    return path
