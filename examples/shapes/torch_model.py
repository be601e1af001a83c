"""The small model in PyTorch, from the files that the export reads."""

from collections.abc import Sequence
from pathlib import Path

from controlnext.families import get_family
from controlnext.reference import ImageReference
from controlnext.weights import Checkpoint, load_checkpoint

MODEL = Path(__file__).parent / "model"


def checkpoint(model: Path = MODEL, lora: Sequence[str] = ()) -> Checkpoint:
    """Return the small model, with LoRAs ``PATH[:SCALE]``."""
    return load_checkpoint(
        get_family("sdxl"),
        base=model / "base",
        control=model / "controlnet.safetensors",
        unet_weights=model / "unet.safetensors",
        unet_increments=True,
        lora=lora,
    )


def reference(model: Path = MODEL, lora: Sequence[str] = ()) -> ImageReference:
    """Load the small model in PyTorch; the arguments are those of :func:`checkpoint`."""
    return ImageReference.of(checkpoint(model, lora))
