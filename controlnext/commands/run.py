"""``controlnext run``: a prompt and a control picture to a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from controlnext.commands import options
from controlnext.commands.console import print_json, progress
from controlnext.commands.pictures import check_writable_name, read_picture
from controlnext.files import new_file


def run(
    bundle: options.Bundle,
    prompt: Annotated[str, typer.Option(help="What the picture shall show.")],
    control_image: Annotated[Path, typer.Option(metavar="FILE", help="The control picture.")],
    preprocess: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make the control picture out of the given one: canny.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it shall not show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the family's")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance, none at 1.", show_default="the family's")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler.", show_default="the family's")] = None,
    seed: Annotated[int, typer.Option(help="Start of the random numbers.")] = 0,
    scale: Annotated[float, typer.Option(help="Strength of the control.")] = 1.0,
    height: Annotated[
        int | None, typer.Option(help="In pixels.", show_default="the control picture's")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="In pixels.", show_default="the control picture's")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture; replaced if it exists.")] = Path(
        "picture.png"
    ),
    as_json: options.Json = False,
) -> None:
    """Make a picture with a bundle. Needs no PyTorch."""
    from controlnext.runtime import Pipeline
    from controlnext.runtime.preprocess import preprocess as make_control

    started = time.monotonic()
    check_writable_name(output)
    picture = read_picture(control_image)
    if preprocess is not None:
        picture = make_control(preprocess, picture)
    with Pipeline.load(bundle) as pipeline, progress(quiet=as_json) as report:
        report("loading", 0.0)
        for step in pipeline.stream(
            prompt,
            negative_prompt=negative_prompt,
            control_image=picture,
            control_scale=scale,
            num_inference_steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            seed=seed,
            height=height,
            width=width,
        ):
            report(f"step {step.index + 1} of {step.total}", (step.index + 1) / step.total)
        report("decoding", 1.0)
        image = pipeline.decode(step.latents)[0]
    with new_file(output) as aside:
        image.save(aside)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        size = {"width": image.width, "height": image.height}
        print_json({"output": str(output), **size, "steps": step.total, "seed": seed, "seconds": seconds})
    else:
        print(f"{output}: {image.width} x {image.height}, {step.total} steps, {seconds} s")
