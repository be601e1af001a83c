"""``controlnext env``: show what an issue report needs of this machine and its installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlnext.cli import options
from controlnext.cli.console import print_json, print_table

if TYPE_CHECKING:
    from controlnext.runtime.environment import BackendState, Device, Environment, Package


def env(as_json: options.Json = False) -> None:
    """Show versions, processor, GPUs, backends and settings of this machine, for reports of problems.

    Secrets are left out, and paths are without the name of the user.
    """
    from controlnext.runtime.environment import describe

    found = describe()
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _print(found)


def _print(found: Environment) -> None:
    memory = "unknown" if found.memory is None else f"{found.memory / 1e9:.1f} GB"
    rows = [
        ("controlnext", found.controlnext),
        ("Python", found.python),
        ("platform", found.platform),
        ("processor", found.processor),
        ("instruction sets", " ".join(found.instruction_sets)),
        ("usable cores", str(found.cores)),
        ("usable memory", memory),
        *((f"GPU {number}", _gpu(gpu)) for number, gpu in enumerate(found.gpus)),
        ("ONNX Runtime's providers", ", ".join(found.providers) or "none"),
    ]
    if not found.gpus:
        rows.insert(-1, ("GPU", "none seen"))
    print_table("Environment", ("", ""), rows)
    print_table(
        "Backends", ("backend", "installed", "runs here on"), [_backend(one) for one in found.backends]
    )
    print_table("Packages", ("package", "version", "extras"), [_package(one) for one in found.packages])
    print_table("Environment variables", ("variable", "value"), list(found.variables.items()))
    for problem in found.problems:
        print(f"Problem: {problem}")


def _gpu(gpu: Device) -> str:
    driver = f"driver {gpu.driver}" if gpu.driver else ""
    capability = f"compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
    return ", ".join(filter(None, (gpu.name, gpu.memory, capability, driver)))


def _backend(one: BackendState) -> tuple[str, str, str]:
    installed = "yes" if one.installed else f"no: controlnext[{one.extra}]"
    return one.name, installed, ", ".join(one.devices) or "none"


def _package(one: Package) -> tuple[str, str, str]:
    return one.name, one.version or "not installed", ", ".join(one.extras)
