"""Hints of other libraries that do not concern users."""

from __future__ import annotations

import logging
import os
import warnings


def silence_hints() -> None:
    """Silence other libraries' hints about optional packages (torchvision) and image files."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    # about odd metadata and large sizes: an image that cannot be read is an error all the same
    warnings.filterwarnings("ignore", module=r"PIL\.")
