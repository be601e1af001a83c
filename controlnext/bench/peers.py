"""Runners of what others make of the same base model: diffusers' ControlNet, DeepCache, OpenVINO."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.bench.engines import GraphRunner
from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.bench.stock import StockRunner
from controlnext.engines.openvino.library import without_telemetry
from controlnext.optional import not_installed


class ControlNetRunner(StockRunner):
    """Runner of diffusers' ControlNet pipeline on the same base model, for steps and images.

    The ControlNet is a copy of the denoiser's encoder half, of the size of the published ones.
    """

    def begin(self, holds: Holds) -> Seconds:
        """Load the stock pipeline, then the ControlNet on top of it."""
        seconds = super().begin(holds)
        started = time.perf_counter()
        import diffusers

        spec = self.family.controlnet
        assert spec is not None
        make = getattr(getattr(diffusers, spec.model), f"from_{self.family.denoiser}")
        denoiser, stock = self.reference.denoiser, self.reference.pipeline
        parameter = next(denoiser.parameters())
        controlnet = make(denoiser, **spec.options).to(parameter).eval()
        cls = getattr(diffusers, spec.pipeline)
        options = {**stock.config, **stock.components, "controlnet": controlnet}
        taken = inspect.signature(cls).parameters
        self.pipeline = cls(**{name: value for name, value in options.items() if name in taken})
        self.pipeline.set_progress_bar_config(disable=True)
        self.clock.watch({"controlnet": [controlnet]})
        return {**seconds, "load": seconds["load"] + time.perf_counter() - started}

    def turn(self, task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` images, or the ``runs`` steps of one image."""
        if task == "image":
            image = partial(self.pipeline, **self._arguments(work, work.steps), output_type="np")
            return [self.clock.split(image) for _ in range(runs)]
        self.clock.split(partial(self.pipeline, **self._arguments(work, runs), output_type="latent"))
        calls = zip(self.clock.calls["denoiser"], self.clock.calls["controlnet"], strict=True)
        return [{"step": sum(both)} for both in calls]

    def _arguments(self, work: Work, steps: int) -> dict[str, Any]:
        assert self.family.controlnet is not None
        image, arguments = plain_arguments(self, self.pipeline, work, steps)
        return {self.family.controlnet.image: image, **arguments}


class DeepCacheRunner(StockRunner):
    """Runner of the stock diffusers pipeline with the package DeepCache and without control, for images."""

    def begin(self, holds: Holds) -> Seconds:
        """Load the stock pipeline; raise :class:`MissingDependencyError` without the package."""
        try:
            from DeepCache import DeepCacheSDHelper
        except ImportError as error:
            raise not_installed("DeepCache is not installed", f"DeepCache ({error})") from error
        seconds = super().begin(holds)
        self.helper = DeepCacheSDHelper(pipe=self.reference.pipeline)
        return seconds

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` images."""
        self.place_decoder(tiny=work.tiny)
        pipeline = self.reference.pipeline
        _, arguments = plain_arguments(self, pipeline, work, work.steps)
        self.helper.set_params(cache_interval=work.cache_interval, cache_branch_id=0)
        self.helper.enable()
        try:
            image = partial(pipeline, **arguments, output_type="np")
            return [self.clock.split(image) for _ in range(runs)]
        finally:
            self.helper.disable()


def plain_arguments(runner: StockRunner, pipeline: Any, work: Work, steps: int) -> tuple[Any, dict[str, Any]]:
    """Return the control image of :func:`image_arguments`, and the other arguments under the names of
    diffusers' ``pipeline``, which gets the scheduler."""
    import torch

    from controlnext.bench.requests import image_arguments

    given = image_arguments(runner.manifest, work)
    if work.sampler is not None:
        pipeline.scheduler = runner.reference.scheduler(work.sampler)
    guidance = runner.family.default_guidance if work.guidance is None else work.guidance
    taken = inspect.signature(type(pipeline).__call__).parameters
    arrays = {name: value for name, value in given.items() if name.endswith("embeds")}
    return given["control_image"], {
        **{name: value for name, value in given.items() if name in taken and name != "control_image"},
        **{name: runner.reference.placed(torch.from_numpy(array)) for name, array in arrays.items()},
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": torch.Generator("cpu").manual_seed(given["seed"]),
    }


class OpenVinoRunner(GraphRunner):
    """Runner of a denoiser's ONNX file with diffusers' input names by OpenVINO with its defaults.

    ``dtype``: the type that it computes in, ``f32`` or ``bf16``.
    """

    def __init__(self, bundle: Path, threads: int, *, graph: str, dtype: str) -> None:
        super().__init__(bundle, threads, graph=graph)
        self.dtype = dtype

    def begin(self, _holds: Holds) -> Seconds:
        """Import OpenVINO and read the graph."""
        started = time.perf_counter()
        try:
            with without_telemetry():
                import openvino
        except ImportError as error:
            raise not_installed("OpenVINO is not installed", f"openvino ({error})") from error
        imported = time.perf_counter()
        self.core = openvino.Core()
        self.model = self.core.read_model(self.graph)
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def _bound_run(self, work: Work) -> Callable[[], Any]:
        """Compile the graph for the shapes of ``work``, as optimum does for the best speed."""
        import openvino

        inputs = self.feed(work, {port.any_name: _described(port) for port in self.model.inputs})
        self.model.reshape({name: openvino.PartialShape(list(a.shape)) for name, a in inputs.items()})
        options = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": self.dtype}
        request = self.core.compile_model(self.model, "CPU", options).create_infer_request()
        return partial(request.infer, inputs)


def _described(port: Any) -> tuple[int, str]:
    """Return the rank and NumPy's name of the type of an input."""
    return port.partial_shape.rank.get_length(), port.element_type.to_dtype().name
