"""Inputs of all targets: the same prompt, control image, sizes and random numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from controlnext.bench.exam_calls import read_calls
from controlnext.bench.messages import Work
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.inputs import SEED, default_run, denoiser_feed, run_arguments
from controlnext.families import get_family
from controlnext.types import Feed

_SEVERAL: Mapping[str, Callable[[Work], dict[str, Any]]] = MappingProxyType(
    {
        "image": lambda work: {"num_images_per_prompt": work.batch, "guidance_scale": work.guidance},
        # one window
        "video": lambda work: {
            "frames_per_batch": work.frames,
            "overlap": 0,
            "max_guidance_scale": work.guidance,
        },
    }
)
"""Arguments besides those of a sampling run, by a family's ``task``."""


def image_arguments(manifest: Manifest, work: Work) -> dict[str, Any]:
    """Return the arguments of an image or clip, for the runtime's pipeline and the PyTorch reference
    alike."""
    trial = default_run(manifest)
    run = replace(
        trial,
        steps=work.steps,
        height=work.height,
        width=work.width,
        frames=trial.frames and work.frames,
    )
    several = _SEVERAL[get_family(manifest.family).task](work)
    return {**run_arguments(manifest, run), **several, **_less(work)}


def exam_calls(file: str, manifest: Manifest, work: Work) -> list[dict[str, Any]]:
    """Return the calls of an exam in ``file``, each with the steps, sampler and guidance of ``work``."""
    asked = image_arguments(manifest, work)
    names = ("num_inference_steps", "guidance_scale", *_less(work))
    common = {name: asked[name] for name in names if name in asked}
    return [{**common, **call} for call in read_calls(Path(file))]


def _less(work: Work) -> dict[str, Any]:
    names = ("sampler", "guidance_end", "cache_interval")
    return {name: getattr(work, name) for name in names}


def step_feed(bundle: Path, work: Work) -> Feed:
    """Return inputs of the bundle's denoiser by name."""
    manifest = read_manifest(bundle)
    return denoiser_feed(bundle, manifest, work.height, work.width, work.rows, work.frames)


def decoder_feed(bundle: Path, decoder: str, work: Work) -> Feed:
    """Return random latents for the bundle's graph ``decoder``."""
    manifest = read_manifest(bundle)
    factor = get_family(manifest.family).vae_factor
    (latents,) = manifest.graphs[decoder].inputs
    sizes = {"height": work.height // factor, "width": work.width // factor}
    shape = latents.spec().shape_at({**sizes, "batch": work.batch, "frames": work.frames})
    return {latents.name: np.random.default_rng(SEED).standard_normal(shape, np.float32)}


def seconds_of(run: Callable[[], Any]) -> float:
    """Call ``run()`` and return the seconds it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
