"""The parity report: a self-contained HTML page."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from controlnext.bundle.files import new_file
from controlnext.bundle.manifest import Manifest
from controlnext.evaluation.inputs import SamplingRun
from controlnext.evaluation.parity import Comparison
from controlnext.evaluation.table import PARITY_COLUMNS, parity_cells

AMPLIFICATION = 20
"""Factor of the brightness of the difference image."""


def write_report(path: Path, manifest: Manifest, run: SamplingRun, comparison: Comparison) -> None:
    """Write the page to ``path``; an existing file is replaced once the new one is complete."""
    template = files("controlnext.evaluation").joinpath("report.html").read_text()
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            manifest=manifest,
            run=run,
            columns=PARITY_COLUMNS,
            missed=sum(not row.passed for row in comparison.rows),
            rows=[(row.passed, parity_cells(row)) for row in comparison.rows],
            images=_images(run, comparison),
        )
    )
    with new_file(path, "report") as aside:
        aside.write_text(page)


def _images(run: SamplingRun, comparison: Comparison) -> dict[str, str]:
    """Return the page's images as data URLs by caption."""
    height, width = comparison.pytorch.shape[:2]
    control = run.control_image.resize((width, height))
    difference = difference_image(comparison.pytorch, comparison.engine)
    return {
        "control image": _data_url(control),
        "PyTorch": _data_url(to_image(comparison.pytorch)),
        "engine": _data_url(to_image(comparison.engine)),
        f"difference, {AMPLIFICATION} times": _data_url(difference),
    }


def to_image(pixels: np.ndarray) -> Image.Image:
    """Convert values (H, W, 3) to an image; they are clipped to [0, 1], NaN becomes 0."""
    return Image.fromarray((np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8))


def difference_image(a: np.ndarray, b: np.ndarray) -> Image.Image:
    """Return ``|a - b|`` of two images (H, W, 3) in [0, 1], :data:`AMPLIFICATION` times as bright."""
    return to_image(np.abs(a - b) * AMPLIFICATION)


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
