"""Runner of stable-diffusion.cpp with the same base model, without control."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.errors import WorkError

_CHILD = Path(__file__).with_name("sdcpp_child.py")
_SAMPLER = "euler"
"""The default of its images; samplers take no time worth mentioning."""


class SdcppRunner:
    """Runner of whole images by the Python package stable-diffusion-cpp-python.

    ``python``: path of an interpreter that has it. ``file``: checkpoint of the original layout. ``dtype``:
    the type that weights are held in, such as ``f16`` and ``q8_0``.
    """

    def __init__(self, bundle: Path, threads: int, *, python: str, file: str, dtype: str) -> None:
        self.bundle, self._python = bundle, python
        self._options = {"model_path": file, "wtype": dtype, "n_threads": threads, "verbose": False}

    def begin(self, _holds: Holds) -> Seconds:
        """Start the process, which loads the model."""
        from controlnext.bundle.reader import read_manifest
        from controlnext.families import get_family

        self.manifest = read_manifest(self.bundle)
        self.guidance = get_family(self.manifest.family).default_guidance
        started = time.perf_counter()
        command = [self._python, str(_CHILD), json.dumps(self._options)]
        pipe = subprocess.PIPE
        try:
            # its messages join this process's, which the benchmark reads where it ends early
            self._process: Any = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=sys.stderr, text=True
            )
        except OSError as error:
            raise WorkError(f"{self._python} cannot be run: {error}") from error
        loaded = self._answer()
        return {"import": time.perf_counter() - started - loaded, "load": loaded}

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` images."""
        from controlnext.bench.requests import image_arguments

        given = image_arguments(self.manifest, work)
        asked = {
            "prompt": given["prompt"],
            "height": work.height,
            "width": work.width,
            "batch_count": work.batch,
            "sample_steps": work.steps,
            "sample_method": work.sampler or _SAMPLER,
            "cfg_scale": self.guidance if work.guidance is None else work.guidance,
            "seed": given["seed"],
        }
        return [{"image": self._ask(asked)} for _ in range(runs)]

    def _ask(self, asked: dict[str, Any]) -> float:
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        line = self._process.stdout.readline()
        if not line:
            raise WorkError(
                f"stable-diffusion.cpp ended with status {self._process.wait()}; see that {self._python} has"
                " the package stable-diffusion-cpp-python"
            )
        return float(json.loads(line)["seconds"])
