"""Runner of the denoiser alone in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.messages import Holds, Seconds, TurnKind, Work

if TYPE_CHECKING:
    from torch import Tensor


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
        normalization = CrossNormalization(checkpoint.variant.injection)
        adapters = [one.module().to(self.dtype) for one in checkpoint.adapters]
        module = wrap(self.spec, network, controls, normalization, adapters=adapters)
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


def set_up(threads: int, device: str, dtype: str) -> tuple[str, Any]:
    """Set PyTorch's number of threads; return PyTorch's name of ``device`` and the torch dtype ``dtype``."""
    import torch

    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return device, getattr(torch, dtype)
