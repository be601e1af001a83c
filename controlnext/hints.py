"""Hints of other libraries, which are no business of a user."""

from __future__ import annotations

import logging
import os
import warnings


def silence_hints() -> None:
    """Keep other libraries' hints off the terminal: about optional parts (torchvision), image files."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    # about odd metadata and large sizes: an image that cannot be read is an error all the same
    warnings.filterwarnings("ignore", module=r"PIL\.")
