"""Fixtures that several tests of the benchmark share: a bundle, and what its runners need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from controlnext.bench.prepare import save_stock_pipeline


@pytest.fixture(scope="module")
def bundle(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tiny SD1.5 in float32, so that engines may be cached in it."""
    return Path(shutil.copytree(tiny("sd15"), tmp_path_factory.mktemp("bench") / "fp32"))


@pytest.fixture(scope="module")
def stock(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save its stock pipeline, as runners of diffusers load it."""
    folder = tmp_path_factory.mktemp("bench") / "stock"
    save_stock_pipeline(bundle, folder)
    return folder
