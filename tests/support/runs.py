"""Running ``controlnext run`` in tests, and comparing its files with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.cli import Cli


def run(cli: Cli, bundle: Path, **flags: Any) -> Any:
    """Call ``controlnext run`` with these options; a list repeats an option."""
    arguments: list[object] = []
    for name, values in flags.items():
        for value in values if isinstance(values, list) else [values]:
            arguments.append(f"--{name.replace('_', '-')}")
            arguments += [] if value is True else [value]
    return cli("run", bundle, *arguments)


def assert_same(path: Path, image: Image.Image) -> None:
    """Assert that the image file ``path`` has the pixels of ``image``."""
    with Image.open(path) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(image))
