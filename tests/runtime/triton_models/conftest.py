"""A written model, loaded as Triton's Python backend loads it, but for the backend."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlnext.runtime.triton.repository import write_model
from controlnext.runtime.triton.settings import TritonSettings
from support import triton_backend
from support.fake_bundle import write_fake_bundle

SETTINGS = TritonSettings(device="cpu", threads=1)
Load = Callable[..., Any]


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("triton") / "toy")


@pytest.fixture
def load(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return a function that writes :func:`toy`, or another bundle, and loads what was written."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_backend)
    module = importlib.import_module("controlnext.runtime.triton.model")
    monkeypatch.setattr(module, "triton", triton_backend)

    with ExitStack() as opened:

        def start(bundle: Path = toy, *, decoupled: bool = True, kind: str = "CPU", **changes: Any) -> Any:
            settings = replace(SETTINGS, **changes)
            repository = tmp_path / "repository"
            written = write_model(bundle, repository, settings, decoupled=decoupled, force=True)
            config = {
                "model_transaction_policy": {"decoupled": decoupled},
                "parameters": {k: {"string_value": v} for k, v in settings.parameters().items()},
            }
            model = module.TritonPythonModel()
            model.initialize(
                {
                    "model_config": json.dumps(config),
                    "model_repository": str(written.directory),
                    "model_version": "1",
                    "model_instance_kind": kind,
                    "model_instance_device_id": "0",
                }
            )
            opened.callback(model.finalize)
            return model

        yield start
