"""Options of ``controlnext run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.cli.completion import among
from controlnext.cli.options import local_path
from controlnext.families.samplers import SAMPLER_SPECS
from controlnext.runtime.preprocess import PREPROCESSORS
from controlnext.runtime.start_request import UPSCALE_MODES

IMAGES, CLIPS = "Options of image bundles", "Options of video bundles"

ControlImage = Annotated[
    list[Path] | None,
    typer.Option(
        parser=local_path("control_image"),
        metavar="PATH",
        help="Path to the control image (for a clip: video file or directory of images); once per control.",
        show_default=False,
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(PREPROCESSORS),
        help=f"Preprocessor of the control image: {', '.join(PREPROCESSORS)}.",
    ),
]
PreprocessorModel = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[OPTION=]PATH_OR_ID[:FILE]",
        help="ONNX file of the preprocessor, by its path or at the hub; OPTION is detector or estimator for"
        " pose; may be repeated.",
        show_default="the preprocessor's own",
    ),
]
Scale = Annotated[
    list[float] | None,
    typer.Option(help="Control scale, one for all controls or one per control.", show_default="1"),
]
ControlStart = Annotated[
    float | None,
    typer.Option(help="Fraction of the steps at which the control starts, from 0 to 1.", show_default="0"),
]
ControlEnd = Annotated[
    float | None,
    typer.Option(help="Fraction of the steps at which the control ends, from 0 to 1.", show_default="1"),
]
CacheInterval = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Run the whole denoiser at every step of this number, its shallow part between: faster.",
        show_default="1",
    ),
]
Steps = Annotated[int | None, typer.Option(help="Number of denoising steps.", show_default="the family's")]
Timesteps = Annotated[
    str | None,
    typer.Option(
        metavar="T,T,...",
        help="Training timesteps of the steps, highest first, in place of --steps.",
        rich_help_panel=IMAGES,
    ),
]
Sigmas = Annotated[
    str | None,
    typer.Option(metavar="S,S,...", help="Noise levels of the steps, highest first, in place of --steps."),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance scale (for a clip: of the last frame).",
        show_default="the family's",
    ),
]
GuidanceEnd = Annotated[
    float | None,
    typer.Option(
        help="Fraction of the steps at which guidance ends, from 0 to 1; later steps take half the time.",
        show_default="1",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        autocompletion=among(SAMPLER_SPECS), help="Name of the sampler.", show_default="the family's"
    ),
]
Seed = Annotated[int | None, typer.Option(help="Random seed.", show_default="0")]
Height = Annotated[
    int | None, typer.Option(help="Image height in pixels.", show_default="the control image's")
]
Width = Annotated[int | None, typer.Option(help="Image width in pixels.", show_default="the control image's")]
Prompt = Annotated[str | None, typer.Option(help="Text prompt.", rich_help_panel=IMAGES)]
NegativePrompt = Annotated[str | None, typer.Option(help="Negative text prompt.", rich_help_panel=IMAGES)]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[:SCALE]",
        help="Path to a LoRA, with its scale (default 1); may be repeated. The bundle needs room for it.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
IpAdapterImage = Annotated[
    list[Path] | None,
    typer.Option(
        parser=local_path("ip_adapter_image"),
        metavar="FILE",
        help="Path to an image prompt; once per IP-Adapter, or several that act together for one.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
IpAdapterScale = Annotated[
    list[float] | None,
    typer.Option(
        help="Scale of the image prompts, one for all IP-Adapters or one per IP-Adapter.",
        show_default="1",
        rich_help_panel=IMAGES,
    ),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        help="Number of images to generate, saved as image-1.png, image-2.png and so on.",
        show_default="1",
        rich_help_panel=IMAGES,
    ),
]
VaeTiling = Annotated[
    bool | None,
    typer.Option(
        "--vae-tiling",
        help="Decode the latents in overlapping tiles to save memory; colours may differ between tiles.",
        rich_help_panel=IMAGES,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        "--image",
        "--init-image",
        parser=local_path("image"),
        metavar="FILE",
        help="Path to the image to start from; for a clip, to animate.",
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of the input image to change, from 0 to 1.", show_default="0.8", rich_help_panel=IMAGES
    ),
]
MaskImage = Annotated[
    Path | None,
    typer.Option(
        "--mask-image",
        "--mask",
        parser=local_path("mask_image"),
        metavar="FILE",
        help="Path to the mask: white where the input image is to be inpainted.",
        rich_help_panel=IMAGES,
    ),
]
PaddingMaskCrop = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Inpaint only the part around the mask, with this margin in pixels, and paste it back.",
        rich_help_panel=IMAGES,
    ),
]
Overlay = Annotated[
    bool | None,
    typer.Option(
        "--overlay",
        help="Keep the input image's own pixels outside the mask, at its own size.",
        rich_help_panel=IMAGES,
    ),
]
Upscale = Annotated[
    float | None,
    typer.Option(
        help="Factor by which the image is enlarged for a second pass at that size.", rich_help_panel=IMAGES
    ),
]
UpscaleMode = Annotated[
    str | None,
    typer.Option(
        help=f"How it is enlarged: {' or '.join(UPSCALE_MODES)}.",
        show_default=UPSCALE_MODES[0],
        rich_help_panel=IMAGES,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of frames to generate.", show_default="the control's", rich_help_panel=CLIPS
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        help="Frames per second of the output file.",
        show_default="the control video's, or 7",
        rich_help_panel=CLIPS,
    ),
]
FramesPerBatch = Annotated[
    int | None,
    typer.Option(
        help="Number of frames per denoising window.",
        show_default="14",
        rich_help_panel=CLIPS,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        help="Number of frames shared by consecutive windows.", show_default="4", rich_help_panel=CLIPS
    ),
]
MinGuidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance scale of the first frame.", show_default="1", rich_help_panel=CLIPS
    ),
]
NoiseAugStrength = Annotated[
    float | None,
    typer.Option(
        help="Strength of the noise added to the input image.", show_default="0.02", rich_help_panel=CLIPS
    ),
]
DecodeChunk = Annotated[
    int | None,
    typer.Option(
        help="Number of frames to decode at a time.", show_default="the window's", rich_help_panel=CLIPS
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("output"),
        metavar="PATH",
        help="Path to the output image, or to the output clip: .mp4, .gif or a new directory of frames. An"
        " image or video file that is there is replaced.",
        show_default="image.png or clip.mp4",
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Write PNG files without the arguments that made them.")
]
Like = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("like"),
        metavar="PNG",
        help="Path to an image of this command, the server or batch to make again; options that are given"
        " count more than what the image says.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Keep only one engine in memory at a time, which is slower."),
]
