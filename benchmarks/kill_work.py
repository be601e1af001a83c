"""What the kill campaign kills: functions of texts, each run in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from controlnext.bundle.remote import local_copy
from controlnext.cli import main
from controlnext.weights.hub import fetch

if os.environ.get("KILLS_EXPORT"):
    # all that an export imports, before the fork
    import onnxruntime

    import controlnext.evaluation.calibration_data
    import controlnext.evaluation.parity
    from controlnext.export import exporter
    from support.exports import export_tiny
    from support.traces import traced_once
else:
    import onnxruntime  # noqa: F401

    import controlnext.runtime  # noqa: F401


def command(*arguments: str) -> None:
    """Run ``controlnext``."""
    sys.argv = ["controlnext", *arguments]
    main()


def export(checkpoint: str, precision: str, output: str) -> None:
    """Export a tiny model in place of what is there; graphs are traced once, which is most of the time and
    writes nothing."""
    exporter.trace = traced_once(exporter.trace, Path(os.environ["KILLS_TRACES"]))  # type: ignore[attr-defined]
    export_tiny("sd15", Path(checkpoint), precision, Path(output), force=True)


def download(repository: str) -> None:
    """Download all files of a repository and print their directory."""
    print(f"directory: {fetch(repository, None, list)[0]}")


def copy(location: str, cache: str) -> None:
    """Copy a bundle that lies elsewhere."""
    print(f"directory: {local_copy(location, Path(cache))}")
