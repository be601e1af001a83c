"""A backend that the project does not have, entered in the table: everything works on it as it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from controlnext.bench.choices import Surroundings
from controlnext.bench.targets import all_targets
from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine, registry, select_backend
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.openvino.backend import OpenVinoBackend
from controlnext.errors import InputError, MissingDependencyError
from controlnext.runtime import Pipeline
from controlnext.types import Feed
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing


class _Toy(Backend):
    """Runs graphs on the processor, as ONNX Runtime does."""

    name, title, module, extra = "toy", "Toy Inference", "json", "toy"

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        if not self.supports(device):
            raise InputError(f"toy does not run on device {device}; give device cpu")
        self._library = OrtBackend("cpu", threads=threads)

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        return _ToyEngine(self._library.open(bundle, manifest, graph_name, cache=cache), manifest)


class _ToyEngine(Engine):
    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        super().__init__(manifest, engine.graph_name, "toy on cpu")
        self._engine = engine

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        return self._engine._run(feed, replaced)

    def _close(self) -> None:
        self._engine.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "sd15")


def _enter(patch: pytest.MonkeyPatch, first: bool = False) -> None:
    """Put the entry in the table, behind the others unless ``first``."""
    toy, others = {"toy": _Toy}, dict(registry.BACKENDS)
    patch.setattr(registry, "BACKENDS", MappingProxyType({**toy, **others} if first else {**others, **toy}))


def test_it_runs_by_its_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    _enter(monkeypatch)
    with Pipeline.load(bundle, backend="toy", cache=False) as pipe:
        assert pipe.backend == "toy on cpu"
    drawing(1, 48, 64).save(tmp_path / "control.png")
    asked = ["run", bundle, "--prompt", "a", "--control-image", tmp_path / "control.png", "--steps", 1]
    asked += ["--output", tmp_path / "out.png", "--json"]
    done = cli(*asked, "--backend", "toy")
    assert (done.status, json.loads(done.out)["backend"]) == (0, "toy on cpu"), done.err
    assert_refused(cli(*asked, "--backend", "toy", "--device", "cuda:0"), "toy does not run on device cuda:0")
    assert_refused(cli(*asked, "--backend", "toys"), "openvino, openvino-bf16, toy")


def test_auto_asks_in_the_order_of_the_table(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing over what is not installed and what does not run on the device."""
    _enter(monkeypatch, first=True)
    with Pipeline.load(bundle, cache=False) as pipe:
        assert pipe.backend == "toy on cpu"
    with pytest.raises(InputError, match="cuda:0"):
        select_backend("auto", "cuda:0")
    monkeypatch.setattr(_Toy, "module", "a_library_that_is_not_there")
    with Pipeline.load(bundle, cache=False) as pipe:
        assert pipe.backend == "onnxruntime on cpu"


def test_it_stands_in_where_onnxruntime_is_not_installed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrtBackend, "module", "a_library_that_is_not_there")
    monkeypatch.setattr(OpenVinoBackend, "module", "a_library_that_is_not_there")
    _enter(monkeypatch)
    with Pipeline.load(bundle, cache=False) as pipe:
        assert pipe.backend == "toy on cpu"
    monkeypatch.setattr(_Toy, "module", "a_library_that_is_not_there")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="ONNX Runtime"):
        Pipeline.load(bundle)


def test_inspect_and_the_benchmark_know_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    _enter(monkeypatch)
    done = cli("inspect", bundle)
    assert done.status == 0, done.err
    assert "toy" in done.out
    names = {one.name for one in all_targets([bundle], Surroundings(tmp_path, "cpu", gpu=False))}
    assert "engine fp32, Toy Inference" in names
    on_gpu = {one.name for one in all_targets([bundle], Surroundings(tmp_path, "cuda:0", gpu=True))}
    assert "engine fp32, Toy Inference" not in on_gpu
