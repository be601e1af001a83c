"""The environment that bundles are exported and run in: what the report of a problem needs.

Nothing heavy is imported for it but ONNX Runtime, which alone knows its providers. No secrets are in it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

import controlnext
from controlnext import processor
from controlnext.engines import registry
from controlnext.engines.tensorrt.gpu import find_gpus
from controlnext.onnx_runtime import load_onnxruntime
from controlnext.secrets import HIDDEN, is_secret, without_secrets

NOT_FOR_USERS = ("dev", "docs")
"""Extras whose packages make no difference to an export or a run."""
LIBRARIES = "nvidia-"
"""The start of the names of packages with CUDA's libraries, which no extra names."""
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
"""Those that the speed of a run depends on, by Linux's names."""
VARIABLES = re.compile(
    r"CONTROLNEXT_\w+|CUDA_\w+|NVIDIA_\w+|HF_\w+|HUGGING_FACE_\w+|HUGGINGFACE_\w+"
    r"|TRANSFORMERS_(?!VERBOSITY)\w+|DIFFUSERS_(?!VERBOSITY)\w+"
    r"|ORT_\w+|OPENVINO_\w+|OV_\w+|OMP_\w+|KMP_\w+|MKL_\w+|OPENBLAS_\w+|RAY_\w+|PYTORCH_\w+|TORCH_\w+|PYTHON\w+"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|MALLOC_\w+|XDG_CACHE_HOME|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX"
    r"|(?i:https?_proxy|all_proxy|no_proxy)"
)
"""Names of environment variables that change what is done here."""
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,.-]+\])?[^;]*(?:;.*extra\s*==\s*['\"]([\w.-]+)['\"])?")
_QUERY = "name,driver_version,memory.total,compute_cap"
_PATIENCE = 20
_DRIVER = Path("/proc/driver/nvidia/version")
_CARDS = Path("/sys/class/drm")


class Package(msgspec.Struct):
    """A package, the extras that install it (empty for the runtime's own), and its version, if installed."""

    name: str
    extras: list[str]
    version: str | None


class Device(msgspec.Struct):
    """A GPU; what cannot be seen is empty. ``driver``: version or name of the driver."""

    name: str
    driver: str = ""
    memory: str = ""
    compute_capability: str = ""


class BackendState(msgspec.Struct):
    """A backend: whether its library is installed, by which extra it is, and where it can run now."""

    name: str
    installed: bool
    extra: str
    devices: list[str]


class Environment(msgspec.Struct):
    """The environment. ``memory``: in bytes, as far as this process may use it; ``problems``: what is wrong
    in it."""

    controlnext: str
    python: str
    platform: str
    packages: list[Package]
    processor: str
    instruction_sets: list[str]
    cores: int
    memory: int | None
    gpus: list[Device]
    providers: list[str]
    backends: list[BackendState]
    variables: dict[str, str]
    problems: list[str]


def describe() -> Environment:
    """Return the environment of this process."""
    packages, gpus = list(_packages()), _gpus()
    problems: list[str] = []
    providers = _providers(problems)
    installed = {package.name for package in packages if package.version}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; uninstall both,"
            " then install one of them"
        )
    found = processor.instruction_sets()
    facts = processor.facts()
    return Environment(
        controlnext=controlnext.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform.platform(),
        packages=packages,
        processor=facts.get("model name") or facts.get("CPU part") or platform.processor(),
        instruction_sets=[name for name in INSTRUCTION_SETS if name in found],
        cores=processor.usable_cores(),
        memory=processor.usable_memory(),
        gpus=gpus,
        providers=providers,
        backends=list(_backends(providers, gpu=any(gpu.compute_capability for gpu in gpus))),
        variables=_variables(),
        problems=problems,
    )


def _packages() -> Iterator[Package]:
    """Yield the packages that pyproject.toml names, but for those of developers, then CUDA's libraries."""
    extras: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if name != "controlnext" and extra not in NOT_FOR_USERS:
            extras.setdefault(name, []).extend([extra] if extra else [])
    versions = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version
        for found in importlib.metadata.distributions()
        if found.name
    }
    for name, several in sorted(extras.items()):
        yield Package(name, several, versions.get(re.sub(r"[-_.]+", "-", name).lower()))
    for name, version in sorted(versions.items()):
        if name.startswith(LIBRARIES):
            yield Package(name, [], version)


def _requirements() -> Iterator[tuple[str, str]]:
    """Yield the name and the extra of each requirement; none where the package is not installed itself."""
    try:
        texts = importlib.metadata.requires("controlnext") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts:
        if found := _REQUIREMENT.fullmatch(text.strip()):
            yield found[1], found[2] or ""


def _gpus() -> list[Device]:
    """Return the GPUs by NVIDIA's tool, its driver's library, or the kernel: the first that finds any."""
    return _from_tool() or list(_from_driver()) or list(_from_kernel())


def _from_tool() -> list[Device]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [Device(*row) for row in rows if len(row) == len(_QUERY.split(","))]


def _from_driver() -> Iterator[Device]:
    for gpu in find_gpus():
        number = gpu.architecture.removeprefix("sm")
        yield Device(gpu.name, _driver_version(), compute_capability=f"{number[:-1]}.{number[-1]}")


def _driver_version() -> str:
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _from_kernel() -> Iterator[Device]:
    """Yield the graphics cards that Linux knows, of any maker, by their numbers at the PCI bus."""
    for card in sorted(_CARDS.glob("card[0-9]*")):
        try:
            lines = (card / "device" / "uevent").read_text().splitlines()
        except OSError:
            continue
        facts = dict(line.split("=", 1) for line in lines if "=" in line)
        if "PCI_ID" in facts:
            yield Device(f"PCI {facts['PCI_ID']}", facts.get("DRIVER", ""))


def _providers(problems: list[str]) -> list[str]:
    backend = registry.BACKENDS["onnxruntime"]
    if not backend.available():
        return []
    try:
        return list(load_onnxruntime().get_available_providers())
    except Exception as error:  # a damaged installation raises anything
        problems.append(f"onnxruntime is installed and cannot be used: {str(error) or type(error).__name__}")
        return []


def _backends(providers: list[str], *, gpu: bool) -> Iterator[BackendState]:
    for name, backend in registry.BACKENDS.items():
        here = set(backend.devices) if gpu else set(backend.devices) - {"cuda"}
        if backend.module == "onnxruntime":
            here &= {"cpu" if "CPU" in one else "cuda" if "CUDA" in one else "" for one in providers}
        installed = backend.available()
        yield BackendState(name, installed, backend.extra, sorted(here) if installed else [])


def _variables() -> dict[str, str]:
    """Return the environment variables that matter, without secrets and without the user's name."""
    home = str(Path.home()).rstrip(os.sep)
    shown: Mapping[str, str] = {
        name: HIDDEN if is_secret(name) else without_secrets(value)
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name)
    }
    if len(home) < 2:
        return dict(shown)
    inside = re.compile(rf"{re.escape(home)}(?=$|[{re.escape(os.sep + os.pathsep)}])")
    return {name: inside.sub("~", value) for name, value in shown.items()}
