"""Description of the machine and of the installed libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import msgspec

from controlnext import processor
from controlnext.engines.onnxruntime.int8 import known_int8_form
from controlnext.engines.tensorrt.gpu import find_gpu

LIBRARIES = (
    "controlnext",
    "diffusers",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "transformers",
)
# instruction sets that decide which float32, bfloat16 and int8 kernels a library uses
INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


class Hardware(msgspec.Struct, frozen=True):
    """The machine and the versions of the libraries.

    ``cores``: number of physical cores available to this process. ``memory``: in bytes. ``int8_form``: the
    types that ONNX Runtime multiplies int8 layers in on this processor.
    """

    processor: str
    cores: int
    instructions: list[str]
    memory: int
    gpu: str
    system: str
    versions: dict[str, str]
    int8_form: str = ""

    @property
    def title(self) -> str:
        """Return the machine in one line."""
        gpu = f", {self.gpu}" if self.gpu else ""
        form = [f"int8 as {self.int8_form}"] if self.int8_form else []
        sets = f" ({', '.join(self.instructions + form)})" if self.instructions + form else ""
        return f"{self.processor}, {self.cores} cores{sets}, {self.memory / 2**30:.0f} GiB{gpu}"


def find_hardware() -> Hardware:
    """Describe this machine and the installed libraries. Needs psutil."""
    import psutil

    facts = processor.facts()
    gpu = find_gpu()
    names = (facts.get("model name"), platform.processor(), platform.machine())
    sets = processor.instruction_sets()
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return Hardware(
        processor=next(name for name in names if name),
        cores=core_count(),
        instructions=[name for name in INSTRUCTIONS if name in sets],
        memory=psutil.virtual_memory().total,
        gpu=gpu.name if gpu else "",
        system=platform.platform(),
        versions={
            "python": platform.python_version(),
            **{name: installed[name] for name in LIBRARIES if name in installed},
        },
        int8_form=known_int8_form(),
    )


def core_count() -> int:
    """Return the number of physical cores available to this process. Needs psutil."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def free_memory() -> int:
    """Return the available memory in bytes. Needs psutil."""
    import psutil

    return psutil.virtual_memory().available
