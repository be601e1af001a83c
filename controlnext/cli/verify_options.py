"""Options of ``controlnext verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.cli.options import local_path
from controlnext.engines import registry
from controlnext.engines.onnxruntime.backend import OrtBackend

OTHER_BACKENDS = tuple(
    name
    for name, backend in registry.BACKENDS.items()
    if not (backend.needs_build or issubclass(backend, OrtBackend))
)
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        help="Backend to compare besides ONNX Runtime, built engines and what auto runs here:"
        f" {', '.join(OTHER_BACKENDS)}; may be repeated.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(parser=local_path("report"), metavar="FILE", help="Path to an HTML report to write."),
]
Prompt = Annotated[str | None, typer.Option(help="Text prompt of the sampling run.")]
ControlImage = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("control_image"),
        metavar="FILE",
        help="Path to the control image of the sampling run.",
    ),
]
Steps = Annotated[int | None, typer.Option(help="Number of denoising steps of the sampling run.")]
Height = Annotated[int | None, typer.Option(help="Image height of the sampling run in pixels.")]
Width = Annotated[int | None, typer.Option(help="Image width of the sampling run in pixels.")]
Ranges = Annotated[
    bool,
    typer.Option(
        "--ranges",
        help="Measure float16 range and rounding error per tensor and module, instead of parity.",
    ),
]
Depth = Annotated[
    int, typer.Option(min=1, help="Number of path components that identify a module of --ranges.")
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="BUNDLE",
        help="Path to a bundle of another precision to compare tensor by tensor, instead of parity.",
    ),
]
