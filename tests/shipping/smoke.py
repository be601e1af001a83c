"""Runs a bundle with the installed package: what ``make smoke`` does, with nothing of the checkout but this.

    python tests/shipping/smoke.py BUNDLE

The bundle is copied first: a run leaves files in it. It needs no text encoders.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import controlnext
from controlnext.bundle.reader import read_manifest
from controlnext.runtime import ImagePipeline, Pipeline


def main(bundle: Path) -> None:
    """Make an image of two steps; raises :class:`AssertionError` if something is not as installed."""
    checkout = Path(__file__).parents[2]
    assert checkout / "controlnext" not in Path(controlnext.__file__).parents, "the checkout's package runs"
    assert importlib.util.find_spec("torch") is None, "PyTorch is installed"
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(bundle, Path(folder) / "bundle")
        inputs = read_manifest(copy).graphs["unet"].inputs
        (width,) = [one.shape[-1] for one in inputs if one.name == "encoder_hidden_states"]
        with Pipeline.load(copy, device="cpu") as pipeline:
            assert isinstance(pipeline, ImagePipeline)
            images = pipeline(
                prompt_embeds=np.zeros((1, 8, int(width)), np.float32),
                negative_prompt_embeds=np.zeros((1, 8, int(width)), np.float32),
                control_image=np.zeros((64, 64, 3), np.uint8),
                num_inference_steps=2,
                seed=0,
                output_type="np",
            ).images
    assert np.isfinite(images).all()
    print(f"controlnext {controlnext.__version__} at {controlnext.__file__} made an image of {images.shape}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
