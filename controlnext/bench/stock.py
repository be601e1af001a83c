"""Runners of the stock diffusers pipeline: the base for all that run it, and with the bundle's control."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.engines import as_bytes
from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.bench.pytorch import set_up
from controlnext.engines.devices import device_kind
from controlnext.errors import WorkError
from controlnext.families.schema import PREVIEW_VAE, VAE

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class StockRunner:
    """The base of all runners of the stock diffusers pipeline.

    ``stock``: directory that :func:`controlnext.bench.prepare.save_stock_pipeline` saved.
    """

    def __init__(self, bundle: Path, threads: int, *, device: str, dtype: str, stock: str) -> None:
        self.bundle, self.threads, self.device = bundle, threads, device
        self._dtype, self._stock = dtype, Path(stock)
        self._tiny: list[nn.Module] = []

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
        self.reference.skip_layers(self.manifest.clip_skip)
        self.reference.pipeline.to(self.device)
        self.clock = ModuleClock(self.parts(), self.wait)
        return {"import": imported - started, "load": time.perf_counter() - ready}

    def place_decoder(self, *, tiny: bool) -> None:
        """Have the pipeline decode with the tiny VAE of previews, or with its own again."""
        import diffusers

        pipeline = self.reference.pipeline
        if tiny and not self._tiny:
            folder = self._stock / PREVIEW_VAE
            if not folder.is_dir():
                raise WorkError(f"{self.bundle.name} has no tiny VAE; export it with `preview_vae`")
            loaded = diffusers.AutoencoderTiny.from_pretrained(folder, torch_dtype=pipeline.vae.dtype)
            self._tiny.append(loaded.to(self.device))
            self.clock.watch({"decode": [loaded.decoder]})
        pipeline.vae = self._tiny[0] if tiny else self.reference.modules[VAE]

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

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the pipeline's networks by the part of a run that they belong to."""
        modules, vae = self.reference.modules, self.reference.pipeline.vae
        encoders = [module for name, module in modules.items() if "_encoder" in name]
        return {
            "encode": [*encoders, vae.encoder],
            "denoiser": [self.reference.denoiser],
            "decode": [vae.decoder],
        }

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if device_kind(self.device) == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


class PipelineRunner(StockRunner):
    """Runner of the stock diffusers pipeline with the bundle's control, for images.

    ``images``: the last that were made.
    """

    images: np.ndarray | None = None

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` images."""
        from controlnext.bench.requests import image_arguments

        arguments = image_arguments(self.manifest, work)
        self.place_decoder(tiny=work.tiny)

        def run() -> None:
            output: Any = self.reference(**arguments)
            self.images = as_bytes(output.images if self.family.task == "image" else output.frames)

        return [self.clock.split(run) for _ in range(runs)]

    def draw(self, work: Work, calls: str) -> np.ndarray:
        """Return the images of an exam; see :meth:`controlnext.bench.worker.Artist.draw`."""
        import numpy as np

        from controlnext.bench.requests import exam_calls

        self.place_decoder(tiny=work.tiny)
        outputs: list[Any] = [self.reference(**call) for call in exam_calls(calls, self.manifest, work)]
        return as_bytes(np.concatenate([output.images for output in outputs]))


class ModuleClock:
    """A clock that times every call of modules: ``calls`` has their seconds by the name of their part.

    ``wait``: function that returns when the device has finished its work.
    """

    def __init__(self, parts: Mapping[str, list[nn.Module]], wait: Callable[[], None]) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        self._wait, self._started = wait, 0.0
        self.watch(parts)

    def watch(self, parts: Mapping[str, list[nn.Module]]) -> None:
        """Time further modules."""
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
