"""``controlnext run``: generate images or a clip with a bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image

from controlnext.cli import options, run_options
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.console import print_json, progress
from controlnext.cli.like import like_image, read_like, recipe_of_run, tell_backend
from controlnext.cli.option_names import argument_of
from controlnext.cli.preprocessors import ControlFiles, opened
from controlnext.errors import InputError
from controlnext.image_input import open_image
from controlnext.lora_names import split_scale
from controlnext.runtime.media.kinds import FILES, Files
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.samplers.steps import GIVEN_STEPS
from controlnext.types import Progress

if TYPE_CHECKING:
    from controlnext.runtime import Pipeline
    from controlnext.runtime.request import CommonRequest

OWN = ("preprocess", "preprocessor_model", "output", "no_metadata")
"""Options that every bundle accepts and no pipeline has as an argument."""
_NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "strength": ("image", "upscale"),
        "upscale_mode": ("upscale",),
        "ip_adapter_scale": ("ip_adapter_image",),
    }
)
"""Options that have an effect together with one of others alone."""


def run(
    bundle: options.Bundle,
    control_image: run_options.ControlImage = None,
    preprocess: run_options.Preprocess = None,
    preprocessor_model: run_options.PreprocessorModel = None,
    scale: run_options.Scale = None,
    control_start: run_options.ControlStart = None,
    control_end: run_options.ControlEnd = None,
    cache_interval: run_options.CacheInterval = None,
    steps: run_options.Steps = None,
    timesteps: run_options.Timesteps = None,
    sigmas: run_options.Sigmas = None,
    guidance: run_options.Guidance = None,
    guidance_end: run_options.GuidanceEnd = None,
    sampler: run_options.Sampler = None,
    seed: run_options.Seed = None,
    height: run_options.Height = None,
    width: run_options.Width = None,
    prompt: run_options.Prompt = None,
    negative_prompt: run_options.NegativePrompt = None,
    lora: run_options.Lora = None,
    ip_adapter_image: run_options.IpAdapterImage = None,
    ip_adapter_scale: run_options.IpAdapterScale = None,
    num_images: run_options.NumImages = None,
    vae_tiling: run_options.VaeTiling = None,
    image: run_options.Image = None,
    strength: run_options.Strength = None,
    mask_image: run_options.MaskImage = None,
    padding_mask_crop: run_options.PaddingMaskCrop = None,
    overlay: run_options.Overlay = None,
    upscale: run_options.Upscale = None,
    upscale_mode: run_options.UpscaleMode = None,
    frames: run_options.Frames = None,
    fps: run_options.Fps = None,
    frames_per_batch: run_options.FramesPerBatch = None,
    overlap: run_options.Overlap = None,
    min_guidance: run_options.MinGuidance = None,
    noise_aug_strength: run_options.NoiseAugStrength = None,
    decode_chunk: run_options.DecodeChunk = None,
    output: run_options.Output = None,
    like: run_options.Like = None,
    no_metadata: run_options.NoMetadata = False,
    backend: options.RunBackend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    offload: run_options.Offload = False,
    as_json: options.Json = False,
) -> None:
    """Generate images or a clip with a bundle, without PyTorch."""
    asked = {
        "control_image": control_image,
        "preprocess": preprocess,
        "preprocessor_model": preprocessor_model,
        "scale": scale,
        "control_start": control_start,
        "control_end": control_end,
        "cache_interval": cache_interval,
        "steps": steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
        "guidance": guidance,
        "guidance_end": guidance_end,
        "sampler": sampler,
        "seed": seed,
        "height": height,
        "width": width,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "lora": lora,
        "ip_adapter_image": ip_adapter_image,
        "ip_adapter_scale": ip_adapter_scale,
        "num_images": num_images,
        "vae_tiling": vae_tiling,
        "image": image,
        "strength": strength,
        "mask_image": mask_image,
        "padding_mask_crop": padding_mask_crop,
        "overlay": overlay,
        "upscale": upscale,
        "upscale_mode": upscale_mode,
        "frames": frames,
        "fps": fps,
        "frames_per_batch": frames_per_batch,
        "overlap": overlap,
        "min_guidance": min_guidance,
        "noise_aug_strength": noise_aug_strength,
        "decode_chunk": decode_chunk,
        "output": output,
        "no_metadata": no_metadata or None,
    }
    from controlnext.runtime import Pipeline

    made = read_like(like)
    directory = fetch_bundle(bundle, quiet=as_json)
    started = time.monotonic()
    with (
        Pipeline.load(directory, backend, device, threads=threads, offload=offload) as pipeline,
        progress(quiet=as_json) as report,
    ):
        report("loading", 0.0)
        kind = FILES[pipeline.family.task]
        given = _check_options(pipeline, kind, like_image(made, pipeline, asked) if made else asked)
        with (
            kind(output, **{name: given[name] for name in kind.takes if name in given}) as files,
            opened(given.get("preprocess"), preprocessor_model) as preprocessor,
        ):
            request = _request(pipeline, ControlFiles(files, preprocessor, report), given)
            for step in pipeline.steps(request):
                report(f"step {step.index + 1} of {step.total}", (step.index + 1) / step.total)
            count = math.prod(step.latents.shape[:-3])
            images = pipeline.result_images(request, step.latents)
            sizes: list[tuple[int, int]] = []
            recipe = None if no_metadata else recipe_of_run(pipeline, request, given, made)
            written = files.save(_reported(images, count, report, sizes), None, recipe)
        ran_by = pipeline.backend
    if made:
        tell_backend(made, ran_by)
    wide, high = sizes[0]
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        size = {"width": wide, "height": high, "count": count}
        result = {"output": str(files.output), "files": [str(path) for path in written], **size}
        print_json(
            {**result, "steps": step.total, "seed": request.seed, "seconds": seconds, "backend": ran_by}
        )
    else:
        number = f"{count} {kind.made} of " if count > 1 else ""
        length = "1 step" if step.total == 1 else f"{step.total} steps"
        print(f"{_span(written)}: {number}{wide} x {high}, {length}, {seconds} s, {ran_by}")


def _span(paths: Sequence[Path]) -> str:
    """Return the first path and, if there are several, the last."""
    return " to ".join(str(path) for path in dict.fromkeys((paths[0], paths[-1])))


def _check_options(pipeline: Pipeline, kind: type[Files], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given; raise :class:`InputError` if the bundle needs or refuses one."""
    title, controls = pipeline.family.title, len(pipeline.controls)
    given = {name: value for name, value in asked.items() if value is not None}
    accepts = {field.name for field in fields(pipeline.request)}
    if not pipeline.family.vae_tiling:
        accepts -= {"vae_tiling"}
    takes = {name: name in (*OWN, *kind.takes) or argument_of(name, accepts) is not None for name in asked}
    wrong = [name for name in given if not takes[name]]
    if wrong:
        accepted = [name for name, taken in takes.items() if taken]
        raise InputError(
            f"{title} does not support {_flags(wrong)}; accepted: {_flags(accepted)}; remove {_flags(wrong)}"
        )
    if "control_image" not in given:
        raise InputError(f"{title} needs --control-image, which is not given; give the control image with it")
    if kind.subject not in given:
        raise InputError(f"{title} needs {_flags([kind.subject])}; give it with --control-image")
    _check_counts(given, "control", controls, {"control_image": (controls,), "scale": (1, controls)})
    if (prompts := len(pipeline.bundle.manifest.graphs[pipeline.family.denoiser].adapters)) > 1:
        counts = {"ip_adapter_image": (prompts,), "ip_adapter_scale": (1, prompts)}
        _check_counts(given, "IP-Adapter", prompts, counts)
    for name, partners in _NEEDS.items():
        if name in given and not set(partners) & given.keys():
            raise InputError(
                f"{_flags([name])} was given, but has no effect without {_flags(partners)}; add that, or"
                f" remove {_flags([name])}"
            )
    return given


def _check_counts(
    given: Mapping[str, Any], kind: str, number: int, counts: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise :class:`InputError` for an option that is not repeated as often as there are things of a kind."""
    for name, accepted in counts.items():
        if name in given and len(given[name]) not in accepted:
            raise InputError(
                f"{_flags([name])} was given {len(given[name])} times, but the number of {kind}s is"
                f" {number}; give one per {kind}"
            )


def _request(pipeline: Pipeline, control: ControlFiles, given: Mapping[str, Any]) -> CommonRequest:
    """Return the pipeline's request; images are read, clips opened."""
    values = dict(given)
    controls = [control(path, given) for path in given["control_image"]]
    values["control_image"] = one_or_all(controls)
    if "scale" in given:
        values["scale"] = one_or_all(given["scale"])
    for name in ("image", "mask_image"):
        if name in given:
            values[name] = open_image(given[name])
    if "ip_adapter_image" in given:
        values["ip_adapter_image"] = [open_image(path) for path in given["ip_adapter_image"]]
    if "ip_adapter_scale" in given:
        values["ip_adapter_scale"] = one_or_all(given["ip_adapter_scale"])
    if "lora" in given:
        values["lora"] = _added(pipeline, given["lora"])
    for name in GIVEN_STEPS:
        if name in values:
            values[name] = _numbers(name, values[name])
    values.setdefault("seed", 0)
    accepted = {field.name for field in fields(pipeline.request)}
    named = {argument: values[name] for name in values if (argument := argument_of(name, accepted))}
    return pipeline.request(**named)


def _added(pipeline: Pipeline, given: Sequence[str]) -> dict[str, float]:
    """Add LoRAs, each ``PATH[:SCALE]``, to the pipeline; return their scales by name.

    They are applied in the order of their names, which is that of the options.
    """
    found = [split_scale(one) for one in given]
    names = [Path(path).name for path, _ in found]
    if names != sorted({*names}):
        names = [f"{number:03}-{name}" for number, name in enumerate(names, start=1)]
    for name, (path, _) in zip(names, found, strict=True):
        pipeline.add_lora(name, path)
    return {name: scale for name, (_, scale) in zip(names, found, strict=True)}


def _numbers(name: str, text: Any) -> Any:
    """Return the numbers of an option; those that are written as integers are integers.

    Those of an image are a list already.
    """
    if not isinstance(text, str):
        return text
    try:
        return [
            int(part) if part.strip().removeprefix("-").isdecimal() else float(part)
            for part in text.split(",")
        ]
    except ValueError as error:
        raise InputError(
            f"{name} is {text!r}; give numbers with commas between them", argument=name
        ) from error


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _reported(
    images: Iterator[Image.Image], count: int, report: Progress, sizes: list[tuple[int, int]]
) -> Iterator[Image.Image]:
    """Yield the images; report on them, and add their sizes to ``sizes``."""
    report("decoding", 0.0)
    for number, image in enumerate(images, start=1):
        sizes.append(image.size)
        yield image
        report(f"decoding, {number} of {count}", number / count)
