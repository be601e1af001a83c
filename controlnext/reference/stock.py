"""The stock diffusers pipeline of a checkpoint."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from controlnext.families import Family, Variant
from controlnext.families.graph_spec import CLASS
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.families.schema import PREVIEW_VAE
from controlnext.image_input import ImageReader
from controlnext.image_prompts import IMAGE_ENCODER
from controlnext.reference.injection import ControlInput, StepCache, with_control
from controlnext.reference.tokens import stock_tokenizers
from controlnext.weights import Checkpoint
from controlnext.weights.checkpoint import NetworkWeights
from controlnext.weights.ip_adapter import AdapterWeights
from controlnext.windows import Window

SCHEDULERS = {name: spec.scheduler for name, spec in SAMPLER_SPECS.items()}
"""The diffusers class of each sampler."""


class StockPipeline:
    """A stock diffusers ``pipeline`` with control modules, and the tiny VAE of previews if there is one.

    ``modules``: all networks by name; ``scheduler``: the scheduler configuration for all samplers;
    ``adapters``: IP-Adapters, loaded for the calls with image prompts.
    """

    def __init__(
        self,
        family: Family,
        variant: Variant,
        pipeline: Any,
        controls: Mapping[str, nn.Module],
        scheduler: Mapping[str, Any],
        preview_vae: nn.Module | None = None,
        adapters: Sequence[AdapterWeights] = (),
    ) -> None:
        self.family, self.variant, self.pipeline = family, variant, pipeline
        networks = {name: getattr(pipeline, name) for name in family.networks}
        self.modules = {name: module for name, module in networks.items() if module is not None}
        self.denoiser = self.modules[family.denoiser]
        self.modules |= controls
        if preview_vae is not None:
            self.modules[PREVIEW_VAE] = preview_vae
        self.adapters = adapters
        if adapters:
            self.modules[IMAGE_ENCODER] = pipeline.image_encoder
        self.controls = list(controls.values())
        self.clip_skip = 0
        self._config = scheduler
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Return the pipeline of a checkpoint, in float32 on the CPU."""
        family, stock = checkpoint.family, cls.stock_class(checkpoint.family)
        accepted = inspect.signature(stock).parameters
        networks = {**checkpoint.networks, family.denoiser: _stock_denoiser(checkpoint)}
        modules = {name: network.module() for name, network in networks.items()}
        encoder = {IMAGE_ENCODER: modules[IMAGE_ENCODER]} if checkpoint.adapters else {}
        pipeline = stock(
            **{name: modules.get(name) for name in family.networks},
            **stock_tokenizers(checkpoint, modules),
            **cls.parts(checkpoint),
            **encoder,
            scheduler=_stock_scheduler(checkpoint),
            **{key: value for key, value in checkpoint.options.items() if key in accepted},
            **family.pipeline_options,
        )
        controls = {name: modules[name] for name, n in checkpoint.networks.items() if n.spec is None}
        config: Mapping[str, Any] = checkpoint.scheduler
        if checkpoint.directory is not None:
            # the pipeline's version of the base's configuration, then the settings that the export was given
            config = _with_given(pipeline.scheduler.config, checkpoint)
        previews = modules.get(PREVIEW_VAE)
        found = cls(family, checkpoint.variant, pipeline, controls, config, previews, checkpoint.adapters)
        found.skip_layers(checkpoint.clip_skip)
        return found

    @classmethod
    def from_folder(
        cls,
        family: Family,
        variant: Variant,
        directory: Path,
        controls: Mapping[str, nn.Module],
        **options: Any,
    ) -> Self:
        """Return the pipeline that diffusers loads with ``options`` from ``directory``, written by
        ``save_pretrained``."""
        index = json.loads((directory / "model_index.json").read_text())
        absent = dict.fromkeys(name for name, value in index.items() if value == [None, None])
        pipeline = cls.stock_class(family).from_pretrained(directory, **absent, **options)
        return cls(family, variant, pipeline, controls, pipeline.scheduler.config)

    @staticmethod
    def stock_class(family: Family) -> Any:
        """Return the pipeline's class."""
        return getattr(diffusers, family.pipeline_class)

    @staticmethod
    def parts(_checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the pipeline's components besides networks, tokenizers and scheduler."""
        return {}

    @torch.no_grad()
    def preview(self, latents: np.ndarray) -> np.ndarray:
        """Return the images (N, H, W, 3) float32 in [0, 1] of the tiny VAE of previews, for latents
        (..., C, h, w) as a run has them."""
        vae: Any = self.modules[PREVIEW_VAE]
        rows = self.placed(torch.from_numpy(latents.reshape(-1, *latents.shape[-3:])))
        scaled = rows / vae.config.scaling_factor + vae.config.shift_factor
        images: np.ndarray = VaeImageProcessor().postprocess(vae.decode(scaled).sample, output_type="np")
        return images

    def skip_layers(self, clip_skip: int) -> None:
        """Have the pipeline's ``clip_skip`` for all runs; 0 skips no layer of the text encoders."""
        self.clip_skip = clip_skip
        for name in self.family.prompt_encoders if clip_skip else ():
            encoder = self.modules[name]
            if not hasattr(encoder, "text_model"):
                # diffusers looks for the final norm in it, newer transformers have no such module; not as a
                # submodule, which would contain itself
                object.__setattr__(encoder, "text_model", encoder)

    def placed(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with the networks' device and dtype."""
        return tensor.to(next(self.denoiser.parameters()))

    def scheduler(self, sampler: str) -> Any:
        """Return diffusers' scheduler for ``sampler`` with the checkpoint's configuration."""
        return make_scheduler(sampler, self._config)

    def controlled(
        self,
        control_inputs: Sequence[ControlInput],
        interval: int,
        windows: Sequence[Window] | None = None,
        **fixed: Tensor,
    ) -> AbstractContextManager[None]:
        """Return the context of :func:`with_control` for this denoiser, with a full step every
        ``interval``; it is cut where the exported one is."""
        (graph,) = (graph for graph in self.family.graphs if graph.name == self.family.denoiser)
        cache = StepCache(interval, graph.cached(self.denoiser.config))  # type: ignore[arg-type]
        return with_control(self.denoiser, self.variant.injection, control_inputs, windows, cache, **fixed)

    def set_steps(
        self, sampler: str | None, steps: int | None, pipeline: Any = None, **given: Any
    ) -> tuple[dict[str, Any], int]:
        """Set a new scheduler; return the pipeline's arguments for it, and the number of steps that it takes.

        ``pipeline``: by default the stock one. ``given``: timesteps or sigmas in place of the number of
        steps; None counts as missing.
        """
        name, pipeline = sampler or self.family.default_sampler, pipeline or self.pipeline
        pipeline.scheduler = self.scheduler(name)
        asked = {key: value for key, value in given.items() if value is not None}
        asked = asked or {"num_inference_steps": steps or self.family.default_steps}
        pipeline.scheduler.set_timesteps(**asked)
        # not a setting of diffusers' class but an argument of its pipelines
        eta = {"eta": self._config.get("eta", 0.0)} if "eta" in SAMPLER_SPECS[name].options else {}
        return {**asked, **eta}, len(pipeline.scheduler.timesteps)

    def other_pipeline(self, name: str) -> Any:
        """Return diffusers' pipeline of the class ``name`` with the same networks."""
        cls, stock = getattr(diffusers, name), self.pipeline
        options = {**stock.config, **stock.components, **self.family.pipeline_options}
        accepted = inspect.signature(cls).parameters
        pipeline = cls(**{key: value for key, value in options.items() if key in accepted})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _stock_denoiser(checkpoint: Checkpoint) -> NetworkWeights:
    """Return the denoiser with the configuration that stock diffusers reads from the base's directory."""
    network = checkpoint.networks[checkpoint.family.denoiser]
    if checkpoint.directory is None or network.spec is None:
        return network
    cls = getattr(diffusers, network.spec.cls)
    return replace(network, config=cls.load_config(checkpoint.directory / network.spec.folder))


def _stock_scheduler(checkpoint: Checkpoint) -> Any:
    """Return the scheduler that stock diffusers loads from the base's directory, or one with the checkpoint's
    configuration if the base is not a diffusers directory."""
    if checkpoint.directory is None:
        return make_scheduler(checkpoint.family.default_sampler, checkpoint.scheduler)
    default = SCHEDULERS[checkpoint.family.default_sampler]
    named = checkpoint.scheduler.get(CLASS, default)
    try:
        return getattr(diffusers, named).from_pretrained(checkpoint.directory, subfolder="scheduler")
    except ImportError:  # a class of a package that is not installed, such as LMS's
        return getattr(diffusers, default).from_pretrained(checkpoint.directory, subfolder="scheduler")


def _with_given(config: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    keys = [key for key, setting in checkpoint.settings.items() if setting.origin == "option"]
    unnamed = [key for key in config.get("_use_default_values", ()) if key not in keys]
    given = {key: checkpoint.scheduler[key] for key in keys}
    return {**config, **given, "_use_default_values": unnamed}


def make_scheduler(sampler: str, config: Mapping[str, Any]) -> Any:
    """Return diffusers' scheduler for a sampler, with this configuration."""
    spec = SAMPLER_SPECS[sampler]
    return getattr(diffusers, spec.scheduler).from_config(config, **spec.fixed)


def control_tensor(images: Any, height: int, width: int, *, clip: bool = False) -> Tensor:
    """Return images as (N, 3, height, width) float32 in [0, 1].

    They are converted to 8-bit RGB before resizing, as in the published scripts: resizing a palette's
    indices, or colours separately from their alpha, gives other images.
    """
    several = images if isinstance(images, (list, tuple)) else [images]
    reader = ImageReader(one_ground=clip)
    rgb = [reader.read_rgb(p) if isinstance(p, Image.Image) else p for p in several]
    processor = VaeImageProcessor(do_normalize=False)
    return processor.preprocess(rgb, height=height, width=width).to(torch.float32)


class LatentsKeeper:
    """A pipeline's ``callback_on_step_end`` that stores the latents of the last step."""

    latents: Tensor

    def __call__(self, _pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, Tensor]) -> Any:
        self.latents = tensors["latents"]
        return tensors


def per_control(value: Any, count: int, shared: bool) -> list[Any]:
    """Return one value for each of ``count`` controls; ``shared``: all get the same ``value``."""
    return [value] * count if shared or count == 1 else list(value)
