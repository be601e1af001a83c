"""``controlnext run``: a prompt, or a reference picture, and its control to pictures or to a clip."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from controlnext.cli import options
from controlnext.cli.console import print_json, progress
from controlnext.cli.option_names import ARGUMENTS
from controlnext.errors import InputError
from controlnext.image_input import ImageReader, open_image
from controlnext.runtime.media.image_files import Change, PictureFiles
from controlnext.runtime.media.video_files import ClipFiles
from controlnext.types import Progress

if TYPE_CHECKING:
    from controlnext.runtime.pipelines.base import Task
    from controlnext.runtime.request import CommonRequest

Files = PictureFiles | ClipFiles

FILES: Mapping[str, type[Files]] = MappingProxyType({"image": PictureFiles, "video": ClipFiles})
"""By a family's ``task`` in the registry."""

HOW = ("bundle", "backend", "device", "threads", "offload", "as_json")
"""What is run, by what, and what is printed: nothing of what is asked of the pipeline."""

OWN = ("preprocess", "output")
"""Options that every bundle takes and no pipeline knows."""

PICTURES, CLIPS = "Bundles that make pictures", "Bundles that make clips"


def run(
    bundle: options.Bundle,
    control_image: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="The control picture; for a clip a folder of pictures, in the order of their names, or a"
            " video. Once for each control of the bundle.",
        ),
    ],
    preprocess: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make the control out of what is given: canny.")
    ] = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(help="Strength of the control: one for all, or one for each.", show_default="1"),
    ] = None,
    control_start: Annotated[
        float | None,
        typer.Option(help="Where in the run, of 0 to 1, the control sets in.", show_default="0"),
    ] = None,
    control_end: Annotated[float | None, typer.Option(help="Where it ends.", show_default="1")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the family's")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance, none at 1; for a clip that of its last frame, none below 1.",
            show_default="the family's",
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler.", show_default="the family's")] = None,
    seed: Annotated[int, typer.Option(help="Start of the random numbers.")] = 0,
    height: Annotated[
        int | None, typer.Option(help="In pixels.", show_default="the control picture's")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="In pixels.", show_default="the control picture's")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the picture shall show.", rich_help_panel=PICTURES)
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What it shall not show.", rich_help_panel=PICTURES)
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            help="How many pictures; several are written to picture-1.png, picture-2.png and so on.",
            show_default="1",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    vae_tiling: Annotated[
        bool | None,
        typer.Option(
            "--vae-tiling",
            help="Decode in overlapping tiles, for large pictures: less memory, but colours may shift from"
            " tile to tile.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The picture that shall move.", rich_help_panel=CLIPS),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the clip.", show_default="the control's", rich_help_panel=CLIPS),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames a second of the file.",
            show_default="the control video's, or 7",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    frames_per_batch: Annotated[
        int | None,
        typer.Option(
            help="A longer clip is denoised in windows of so many frames.",
            show_default="14",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Frames that windows share.", show_default="4", rich_help_panel=CLIPS),
    ] = None,
    min_guidance: Annotated[
        float | None,
        typer.Option(help="Guidance of the first frame.", show_default="1", rich_help_panel=CLIPS),
    ] = None,
    noise_aug_strength: Annotated[
        float | None,
        typer.Option(help="Noise added to the picture.", show_default="0.02", rich_help_panel=CLIPS),
    ] = None,
    decode_chunk: Annotated[
        int | None,
        typer.Option(
            help="Frames that are decoded at a time.", show_default="a window's", rich_help_panel=CLIPS
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The picture; or the clip: .mp4, .gif or a new folder for its frames. A file that is there"
            " is replaced.",
            show_default="picture.png or clip.mp4",
        ),
    ] = None,
    backend: options.RunBackend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload", help="One engine in memory at a time: less memory, but loading takes longer."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make pictures or a clip with a bundle. Needs no PyTorch."""
    asked = {name: value for name, value in locals().items() if name not in HOW}
    from controlnext.runtime import Pipeline

    started = time.monotonic()
    with (
        Pipeline.load(bundle, backend, device, threads=threads, offload=offload) as pipeline,
        progress(quiet=as_json) as report,
    ):
        report("loading", 0.0)
        task = pipeline.task
        kind = FILES[task.family.task]
        given = _check_options(task, kind, asked)
        with kind(output, **{name: given[name] for name in kind.takes if name in given}) as files:
            request = _request(task, files, given)
            for step in task.steps(request):
                report(f"step {step.index + 1} of {step.total}", (step.index + 1) / step.total)
            count = math.prod(step.latents.shape[:-3])
            images = pipeline.images(step.latents, request.chunk, request.vae_tiling)
            written = files.save(_reported(images, count, report))
        ran_by = pipeline.backend
    high, wide = (task.family.vae_factor * size for size in step.latents.shape[-2:])
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        size = {"width": wide, "height": high, "count": count}
        result = {"output": str(files.output), "files": [str(path) for path in written], **size}
        print_json({**result, "steps": step.total, "seed": seed, "seconds": seconds, "backend": ran_by})
    else:
        names = " to ".join(str(path) for path in dict.fromkeys((written[0], written[-1])))
        many = f"{count} of " if count > 1 else ""
        print(f"{names}: {many}{wide} x {high}, {step.total} steps, {seconds} s, {ran_by}")


def _check_options(task: Task, kind: type[Files], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given; raises :class:`InputError` where the bundle cannot take or lacks one."""
    title, controls = task.family.title, len(task.controls)
    given = {name: value for name, value in asked.items() if value is not None}
    takes = {name: name in (*OWN, *kind.takes) or _argument(name, task) is not None for name in asked}
    wrong = [name for name in given if not takes[name]]
    if wrong:
        accepted = [name for name, taken in takes.items() if taken]
        raise InputError(f"{title} takes no {_flags(wrong)}; leave it out; accepted: {_flags(accepted)}")
    if kind.subject not in given:
        raise InputError(f"{title} needs {_flags([kind.subject])}; give it beside --control-image")
    for name, counts in {"control_image": (controls,), "scale": (1, controls)}.items():
        if name in given and len(given[name]) not in counts:
            raise InputError(
                f"{_flags([name])} was given {len(given[name])} times, the controls of this bundle are"
                f" {controls}; give one for each"
            )
    return given


def _request(task: Task, files: Files, given: Mapping[str, Any]) -> CommonRequest:
    """What is asked of the pipeline; pictures are read, clips opened."""
    from controlnext.runtime.preprocess import preprocess

    def change(path: Path) -> Change:
        # a reader for each control: its frames have one ground
        reader = ImageReader(str(path), one_ground=True)
        return partial(preprocess, given["preprocess"], reader=reader)

    values = dict(given)
    values["control_image"] = _one_or_all(
        [
            files.control(path, change(path) if "preprocess" in given else _unchanged)
            for path in given["control_image"]
        ]
    )
    if "scale" in given:
        values["scale"] = _one_or_all(given["scale"])
    if "image" in given:
        values["image"] = open_image(given["image"])
    named = {argument: values[name] for name in values if (argument := _argument(name, task))}
    return task.request(**named)


def _argument(option: str, task: Task) -> str | None:
    """What this bundle's pipeline calls an option; None where it knows no such thing."""
    known = {field.name for field in fields(task.request)}
    return next((name for name in ARGUMENTS.get(option, (option,)) if name in known), None)


def _one_or_all(values: list[Any]) -> Any:
    """A bundle with one control takes no list."""
    return values[0] if len(values) == 1 else values


def _unchanged(picture: Image.Image) -> Image.Image:
    return picture


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _reported(images: Iterator[Image.Image], count: int, report: Progress) -> Iterator[Image.Image]:
    report("decoding", 0.0)
    for number, image in enumerate(images, start=1):
        yield image
        report(f"decoding, {number} of {count}", number / count)
