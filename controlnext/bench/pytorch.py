"""Contestants in PyTorch: the denoiser, the stock diffusers pipeline, diffusers' ControlNet."""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.messages import Holds, Task, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from controlnext.weights import Checkpoint

Seconds = dict[str, float]


class TorchRunner:
    """A bundle's weights in PyTorch.

    ``dtype``: name of the numbers it computes with. ``compiled``: by ``torch.compile``, of the denoiser.
    ``controlled``: with the control, or the base model alone.
    """

    def __init__(
        self,
        bundle: Path,
        threads: int,
        *,
        device: str = "auto",
        dtype: str = "float32",
        compiled: bool = False,
        controlled: bool = True,
    ) -> None:
        self.bundle, self.threads, self.device = bundle, threads, device
        self._dtype, self.compiled, self.controlled = dtype, compiled, controlled
        self._step = cache(self._feed_step)

    def begin(self, holds: Holds) -> Seconds:
        started = time.perf_counter()
        import torch

        from controlnext.reference import reference_pipeline
        from controlnext.weights import bundle_checkpoint

        imported = time.perf_counter()
        torch.set_num_threads(self.threads)
        if self.device == "auto":
            self.device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.dtype: Any = getattr(torch, self._dtype)
        checkpoint = bundle_checkpoint(self.bundle)
        if holds == "denoiser":
            self._open_denoiser(checkpoint if self.controlled else checkpoint.without_controls())
        else:
            self.reference = reference_pipeline(checkpoint, self.device, self.dtype)
            self._open_pipeline()
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def _open_denoiser(self, checkpoint: Checkpoint) -> None:
        import torch

        from controlnext.export.networks import wrap
        from controlnext.injection import CrossNormalization

        (self.spec,) = (graph for graph in checkpoint.graphs if graph.folder == checkpoint.family.denoiser)
        network, *controls = [
            weights.module(self.dtype)
            for weights in (checkpoint.networks[self.spec.network], *checkpoint.controls)
        ]
        module = wrap(self.spec, network, controls, CrossNormalization(checkpoint.variant.injection))
        module = module.to(self.device)
        self.module: Any = torch.compile(module, dynamic=False) if self.compiled else module

    def _open_pipeline(self) -> None:
        self.clock = ModuleClock(self._stages(), self._wait)

    def _stages(self) -> dict[str, list[nn.Module]]:
        """The pipeline's networks by the part of a picture that they make."""
        modules, vae = self.reference.modules, self.reference.pipeline.vae
        encoders = [module for name, module in modules.items() if "_encoder" in name]
        return {
            "encode": [*encoders, vae.encoder],
            "denoiser": [self.reference.denoiser],
            "decode": [vae.decoder],
        }

    def turn(self, task: Task, work: Work, runs: int) -> list[Seconds]:
        return self._pictures(work, runs) if task == "picture" else self._steps(work, runs)

    def _steps(self, work: Work, runs: int) -> list[Seconds]:
        from controlnext.bench.engines import timed

        step = self._step(work)
        return [{"step": timed(step)} for _ in range(runs)]

    def _feed_step(self, work: Work) -> Any:
        import torch

        from controlnext.bench.requests import CHANGING
        from controlnext.commands.trial import denoiser_feed
        from controlnext.manifest import read_manifest

        manifest = read_manifest(self.bundle)
        feed = denoiser_feed(self.bundle, manifest, work.height, work.width, work.rows, work.frames)

        def placed(name: str) -> Tensor:
            # the network takes the sine of the time before it rounds
            dtype = torch.float32 if name == "timestep" else self.dtype
            return torch.from_numpy(feed[name]).to(self.device, dtype)

        stay = {tensor.name: placed(tensor.name) for tensor in self.spec.inputs}

        def run() -> Any:
            with torch.inference_mode():
                stay.update({name: placed(name) for name in CHANGING})
                return self.module(*stay.values()).float().cpu().numpy()

        return run

    def _pictures(self, work: Work, runs: int) -> list[Seconds]:
        from controlnext.bench.requests import picture_arguments
        from controlnext.manifest import read_manifest

        arguments = picture_arguments(read_manifest(self.bundle), work)
        return [self._parts(self.reference, arguments) for _ in range(runs)]

    def _parts(self, pipeline: Any, arguments: Mapping[str, Any]) -> Seconds:
        """Seconds of the parts of a picture."""
        self.clock.calls.clear()
        started = time.perf_counter()
        pipeline(**arguments)
        seconds = {name: sum(calls) for name, calls in self.clock.calls.items()}
        return {**seconds, "rest": time.perf_counter() - started - sum(seconds.values())}

    def _wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)


class ControlNetRunner(TorchRunner):
    """diffusers' ControlNet pipeline of the family on a bundle's base model, the control network a copy of
    the denoiser's first half, as large as those that were published."""

    def begin(self, _holds: Holds) -> Seconds:
        return super().begin("pipeline")

    def _open_pipeline(self) -> None:
        import diffusers

        family, denoiser = self.reference.family, self.reference.denoiser
        spec = family.controlnet
        assert spec is not None
        make = getattr(getattr(diffusers, spec.model), f"from_{family.denoiser}")
        controlnet = make(denoiser, **spec.options).to(self.device, self.dtype).eval()
        stock, cls = self.reference.pipeline, getattr(diffusers, spec.pipeline)
        taken = inspect.signature(cls).parameters
        parts = {name: part for name, part in stock.components.items() if name in taken}
        options = {name: value for name, value in stock.config.items() if name in taken and name not in parts}
        self.controlnet = cls(**{**parts, **options, "controlnet": controlnet})
        self.controlnet.set_progress_bar_config(disable=True)
        self.clock = ModuleClock({**self._stages(), "controlnet": [controlnet]}, self._wait)

    def _steps(self, work: Work, runs: int) -> list[Seconds]:
        self.clock.calls.clear()
        self.controlnet(**self._arguments(work, steps=runs), output_type="latent")
        calls = zip(self.clock.calls["denoiser"], self.clock.calls["controlnet"], strict=True)
        return [{"step": sum(both)} for both in calls]

    def _pictures(self, work: Work, runs: int) -> list[Seconds]:
        arguments = {**self._arguments(work, work.steps), "output_type": "np"}
        return [self._parts(self.controlnet, arguments) for _ in range(runs)]

    def _arguments(self, work: Work, steps: int) -> dict[str, Any]:
        """What the runtime's pipeline is asked for, in this pipeline's terms."""
        import torch

        from controlnext.bench.requests import picture_arguments
        from controlnext.manifest import read_manifest

        family = self.reference.family
        assert family.controlnet is not None
        given = picture_arguments(read_manifest(self.bundle), work)
        picture, seed = given.pop("control_image"), given.pop("seed")
        arrays = {name: value for name, value in given.items() if name.endswith("embeds")}
        return {
            **given,
            **{name: self.reference.placed(torch.from_numpy(array)) for name, array in arrays.items()},
            family.controlnet.picture: picture,
            "num_inference_steps": steps,
            "guidance_scale": family.default_guidance,
            "generator": torch.Generator("cpu").manual_seed(seed),
        }


class ModuleClock:
    """The seconds of every call of some modules: ``calls`` by the name of the part that they are.

    ``wait``: returns when the device has done what it was given.
    """

    def __init__(self, modules: Mapping[str, list[nn.Module]], wait: Callable[[], None]) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        self._wait, self._started = wait, 0.0
        for name, several in modules.items():
            for module in several:
                module.register_forward_pre_hook(self._start)
                module.register_forward_hook(partial(self._stop, name))

    def _start(self, *_call: Any) -> None:
        self._wait()
        self._started = time.perf_counter()

    def _stop(self, name: str, *_call: Any) -> None:
        self._wait()
        self.calls[name].append(time.perf_counter() - self._started)
