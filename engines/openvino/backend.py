"""The backends of OpenVINO: in float32, and with products in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from controlnext import processor
from controlnext.bundle.format import MODEL, PROLOGUE, SHALLOW, check_graph
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.plain import plain_files
from controlnext.engines.base import Backend, Engine
from controlnext.engines.openvino import library, split
from controlnext.engines.openvino.compiled import CompiledGraph, GraphInTurn, Runnable
from controlnext.engines.openvino.engine import OpenVinoEngine
from controlnext.engines.threads import check_threads
from controlnext.errors import BundleError, InputError, WorkError
from controlnext.families import PER_STEP_INPUTS
from controlnext.tensor_spec import control_inputs

BF16_SETS = ("amx_bf16", "avx512_bf16")
"""The instruction sets of processors that multiply bfloat16."""


class OpenVinoBackend(Backend):
    """OpenVINO on the CPU: float32 arithmetic, and int8 in the layers that the graph has in int8.

    ``threads``: by default one for each core that the process may use.
    """

    name, title, module, extra = "openvino", library.TITLE, library.MODULE, library.EXTRA
    computes: ClassVar[str] = "f32"
    """OpenVINO's name of the type that it computes in, which it would choose itself otherwise."""

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        check_threads(threads)
        if not self.supports(device):
            raise InputError(
                f"{self.name} does not run on device {device}; set `device` to cpu, or `backend` to"
                " onnxruntime",
                argument="device",
            )
        self._core = library.core()
        self._settings = {
            "INFERENCE_NUM_THREADS": threads or processor.usable_cores(),
            "NUM_STREAMS": 1,
            # otherwise engines that run at the same time share the first cores
            "ENABLE_CPU_PINNING": False,
        }

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:  # noqa: ARG002
        """Open the graph in ``<bundle>/<graph_name>`` after a check of its files; runs compile it."""
        if graph_name not in manifest.graphs:
            raise BundleError(f"{bundle} has no graph {graph_name}; it has {', '.join(manifest.graphs)}")
        directory = check_graph(bundle, manifest, graph_name)
        whole, names = self._read(directory / MODEL), list[str]()
        prologue = None
        if f"{graph_name}/{PROLOGUE}" in manifest.files:
            names = split.handed_over(whole, self._changing(manifest, graph_name))
            prologue = self._graph(
                split.prologue_of(whole, names),
                lambda: split.prologue_of(self._read(directory / MODEL), names),
            )

        def load_shallow() -> Runnable:
            return self._step(self._read(directory / SHALLOW), directory / SHALLOW, names)

        step = self._step(whole, directory / MODEL, names)
        return OpenVinoEngine(manifest, graph_name, f"{self.name} on cpu", step, prologue, load_shallow)

    def _step(self, model: Any, path: Path, names: Sequence[str]) -> Runnable:
        """Return ``model``, read from ``path``, as a graph that takes the tensors ``names`` as inputs."""
        return self._graph(
            split.with_inputs(model, names), lambda: split.with_inputs(self._read(path), names)
        )

    def _graph(self, model: Any, read: Callable[[], Any]) -> Runnable:
        """Return a graph: ``model``, which ``read`` returns again."""
        return CompiledGraph(model, read, self._build, self._fits)

    @staticmethod
    def _changing(manifest: Manifest, graph_name: str) -> list[str]:
        """Return the inputs that may be new at every step; the control scale is where the control ends."""
        controls = control_inputs(tensor.name for tensor in manifest.graphs[graph_name].inputs)
        return [*PER_STEP_INPUTS, *(control.scale for control in controls)]

    @staticmethod
    def _fits(_model: Any) -> bool:
        """Return whether the library compiles a model with fixed shapes right."""
        return True

    def _read(self, path: Path) -> Any:
        try:
            with plain_files(path) as plain:
                return self._core.read_model(plain)
        except RuntimeError as error:
            raise WorkError(f"OpenVINO cannot load {path}: {library.reason(error)}") from error

    def _build(self, model: Any, computes: str = "") -> Any:
        settings = {**self._settings, "INFERENCE_PRECISION_HINT": computes or self.computes}
        return self._core.compile_model(model, "CPU", settings)


class OpenVinoBf16Backend(OpenVinoBackend):
    """OpenVINO on the CPU with products in bfloat16, on processors that multiply it.

    Layers that the graph has in int8 stay in int8.
    """

    name, title = "openvino-bf16", f"{library.TITLE} bfloat16"
    rounds_to = "bfloat16"
    computes = "bf16"

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        if not self._multiplies():
            raise InputError(
                f"this processor does not multiply bfloat16: it has none of {', '.join(BF16_SETS)}; set"
                " `backend` to openvino or onnxruntime",
                argument="backend",
            )
        super().__init__(device, threads=threads)

    def _graph(self, model: Any, read: Callable[[], Any]) -> Runnable:
        """Return a graph as the base class does, its sinusoids in float32."""
        waves = split.sinusoids(model)
        if not waves:
            return super()._graph(model, read)
        exact = CompiledGraph(
            split.prologue_of(model, waves),
            lambda: split.prologue_of(read(), waves),
            partial(self._build, computes=OpenVinoBackend.computes),
        )
        without_waves = split.with_inputs(model, waves)
        return GraphInTurn(exact, super()._graph(without_waves, lambda: split.with_inputs(read(), waves)))

    @staticmethod
    def _fits(model: Any) -> bool:
        return not split.confuses_heads(model)

    @classmethod
    def variants(cls, kind: str) -> Mapping[str, Mapping[str, str | bool]]:
        """Return the one configuration; none where the processor does not multiply bfloat16."""
        return super().variants(kind) if cls._multiplies() else {}

    @staticmethod
    def _multiplies() -> bool:
        return not processor.instruction_sets().isdisjoint(BF16_SETS)
