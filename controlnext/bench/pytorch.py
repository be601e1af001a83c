"""Runners in PyTorch: the denoiser alone, the stock diffusers pipeline, diffusers' ControlNet pipeline."""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.engines.base import device_kind

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchRunner:
    """Runner of a bundle's denoiser in PyTorch, for steps.

    ``dtype``: name of a torch dtype. ``compiled``: whether to use ``torch.compile``. ``controlled``: whether
    to inject the control, or run the base model alone.
    """

    def __init__(
        self,
        bundle: Path,
        threads: int,
        *,
        device: str,
        dtype: str,
        compiled: bool = False,
        controlled: bool = True,
    ) -> None:
        self.bundle, self.threads, self.device = bundle, threads, device
        self._dtype, self._compiled, self._controlled = dtype, compiled, controlled
        self._step = cache(self._make_step)

    def begin(self, _holds: Holds) -> Seconds:
        """Import PyTorch and load the denoiser."""
        started = time.perf_counter()
        import torch

        from controlnext.export.adapters import wrap
        from controlnext.models.cross_normalization import CrossNormalization
        from controlnext.weights import bundle_checkpoint

        imported = time.perf_counter()
        self.device, self.dtype = set_up(self.threads, self.device, self._dtype)
        checkpoint = bundle_checkpoint(self.bundle)
        if not self._controlled:
            checkpoint = checkpoint.without_controls()
        (self.spec,) = (graph for graph in checkpoint.graphs if graph.name == checkpoint.family.denoiser)
        network, *controls = [
            weights.module(self.dtype)
            for weights in (checkpoint.networks[self.spec.network], *checkpoint.controls)
        ]
        module = wrap(self.spec, network, controls, CrossNormalization(checkpoint.variant.injection))
        module = module.to(self.device)
        self.module: Any = torch.compile(module, dynamic=False) if self._compiled else module
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` denoising steps."""
        from controlnext.bench.requests import seconds_of

        step = self._step(work)
        return [{"step": seconds_of(step)} for _ in range(runs)]

    def _make_step(self, work: Work) -> Callable[[], Any]:
        import torch

        from controlnext.bench.requests import step_feed
        from controlnext.families import PER_STEP_INPUTS

        feed = step_feed(self.bundle, work)

        def on_device(name: str) -> Tensor:
            # the network computes the timestep embedding in float32 before it casts
            dtype = torch.float32 if name == "timestep" else self.dtype
            return torch.from_numpy(feed[name]).to(self.device, dtype)

        inputs = {tensor.name: on_device(tensor.name) for tensor in self.spec.inputs}

        def run() -> Any:
            with torch.inference_mode():
                inputs.update({name: on_device(name) for name in PER_STEP_INPUTS})
                return self.module(*inputs.values()).float().cpu().numpy()

        return run


class PipelineRunner:
    """Runner of the stock diffusers pipeline with the bundle's control, for images.

    ``stock``: directory that :func:`controlnext.bench.prepare.save_stock_pipeline` saved.
    """

    def __init__(self, bundle: Path, threads: int, *, device: str, dtype: str, stock: str) -> None:
        self.bundle, self.threads, self.device = bundle, threads, device
        self._dtype, self._stock = dtype, Path(stock)

    def begin(self, _holds: Holds) -> Seconds:
        """Import diffusers and load the pipeline."""
        from controlnext.bundle.reader import read_manifest
        from controlnext.families import get_family

        self.manifest = read_manifest(self.bundle)
        self.family = get_family(self.manifest.family)
        started = time.perf_counter()
        import diffusers
        import torch  # noqa: F401

        getattr(diffusers, self.family.pipeline_class)
        imported = time.perf_counter()
        # not counted: these imports bring the libraries of the export, which a diffusers user does not need
        from controlnext.reference import REFERENCES

        ready = time.perf_counter()
        self.device, dtype = set_up(self.threads, self.device, self._dtype)
        self.reference = REFERENCES[self.family.task].from_folder(
            self.family,
            self.family.variant(self.manifest.variant),
            self._stock,
            self._controls(dtype),
            torch_dtype=dtype,
        )
        self.reference.pipeline.to(self.device)
        self.clock = ModuleClock(self._parts(), self._wait)
        return {"import": imported - started, "load": time.perf_counter() - ready}

    def _controls(self, dtype: Any) -> dict[str, nn.Module]:
        import msgspec
        from safetensors.torch import load_file

        from controlnext.families import ControlSpec
        from controlnext.weights.control import empty_control

        controls = {}
        for path in sorted(self._stock.glob("control*.safetensors")):
            module = empty_control(msgspec.convert(self.manifest.configs[path.stem], ControlSpec))
            module.load_state_dict(load_file(path), assign=True)
            controls[path.stem] = module.to(self.device, dtype)
        return controls

    def _parts(self) -> dict[str, list[nn.Module]]:
        """Return the pipeline's networks by the part of a run that they belong to."""
        modules, vae = self.reference.modules, self.reference.pipeline.vae
        encoders = [module for name, module in modules.items() if "_encoder" in name]
        return {
            "encode": [*encoders, vae.encoder],
            "denoiser": [self.reference.denoiser],
            "decode": [vae.decoder],
        }

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` images."""
        from controlnext.bench.requests import image_arguments

        arguments = image_arguments(self.manifest, work)
        return [self.clock.split(partial(self.reference, **arguments)) for _ in range(runs)]

    def _wait(self) -> None:
        """Wait until the device has finished its work."""
        if device_kind(self.device) == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


class ControlNetRunner(PipelineRunner):
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
        self.clock = ModuleClock({**self._parts(), "controlnet": [controlnet]}, self._wait)
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
        """Return the arguments of the runtime's pipeline under the names of diffusers' ControlNet
        pipeline."""
        import torch

        from controlnext.bench.requests import image_arguments

        assert self.family.controlnet is not None
        given = image_arguments(self.manifest, work)
        image, seed = given.pop("control_image"), given.pop("seed")
        arrays = {name: value for name, value in given.items() if name.endswith("embeds")}
        return {
            **given,
            **{name: self.reference.placed(torch.from_numpy(array)) for name, array in arrays.items()},
            self.family.controlnet.image: image,
            "num_inference_steps": steps,
            "guidance_scale": self.family.default_guidance,
            "generator": torch.Generator("cpu").manual_seed(seed),
        }


class ModuleClock:
    """A clock that times every call of modules: ``calls`` has their seconds by the name of their part.

    ``wait``: function that returns when the device has finished its work.
    """

    def __init__(self, parts: Mapping[str, list[nn.Module]], wait: Callable[[], None]) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        self._wait, self._started = wait, 0.0
        for name, modules in parts.items():
            for module in modules:
                module.register_forward_pre_hook(self._start)
                module.register_forward_hook(partial(self._stop, name))

    def split(self, run: Callable[[], Any]) -> Seconds:
        """Call ``run()`` and return its seconds by part, with the remainder as ``rest``."""
        self.calls.clear()
        started = time.perf_counter()
        run()
        seconds = {name: sum(calls) for name, calls in self.calls.items()}
        return {**seconds, "rest": time.perf_counter() - started - sum(seconds.values())}

    def _start(self, *_call: Any) -> None:
        self._wait()
        self._started = time.perf_counter()

    def _stop(self, name: str, *_call: Any) -> None:
        self._wait()
        self.calls[name].append(time.perf_counter() - self._started)


def set_up(threads: int, device: str, dtype: str) -> tuple[str, Any]:
    """Set PyTorch's number of threads; return PyTorch's name of ``device`` and the torch dtype ``dtype``."""
    import torch

    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return device, getattr(torch, dtype)
