"""The description of the environment: packages, GPUs as far as they are seen, variables without secrets."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from controlnext.engines import registry
from controlnext.engines.tensorrt.gpu import Gpu
from controlnext.runtime import environment
from controlnext.runtime.environment import Device, describe

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _names(requirements: list[str]) -> set[str]:
    found = (environment._REQUIREMENT.fullmatch(one) for one in requirements)
    return {one[1] for one in found if one} - {"controlnext"}


def test_every_package_that_matters_is_named_with_its_extras() -> None:
    packages = {one.name: one for one in describe().packages if not one.name.startswith("nvidia-")}
    extras = PROJECT["optional-dependencies"]
    wanted = _names(PROJECT["dependencies"]).union(
        *(_names(given) for extra, given in extras.items() if extra not in environment.NOT_FOR_USERS)
    )
    assert set(packages) == wanted
    assert packages["numpy"].version
    assert packages["numpy"].extras == []
    assert "onnxruntime" in packages["onnxruntime"].name
    assert packages["onnxruntime"].extras == ["cpu"]
    assert packages["onnxruntime-gpu"].version is None


def test_nothing_heavy_is_imported_for_it() -> None:
    heavy = ("torch", "diffusers", "transformers", "openvino", "tensorrt", "tensorrt_rtx", "ray", "fastapi")
    code = (
        "import sys; from controlnext.runtime.environment import describe; describe();"
        f" print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_variables_that_matter_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with the name of the user in paths."""
    given = {
        "HF_TOKEN": "short",
        "HF_HOME": f"{Path.home()}/models",
        "LD_LIBRARY_PATH": f"{Path.home()}:{Path.home()}er/lib",
        "HTTPS_PROXY": "http://me:sesame@proxy:3128",
        "CONTROLNEXT_CACHE": "/data",
        "MY_OWN": "not shown",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    shown = describe().variables
    assert shown["HF_TOKEN"] == "***"
    assert shown["HF_HOME"] == f"~{os.sep}models"
    assert shown["LD_LIBRARY_PATH"] == f"~:{Path.home()}er/lib"
    assert shown["HTTPS_PROXY"] == "http://***@proxy:3128"
    assert shown["CONTROLNEXT_CACHE"] == "/data"
    assert "MY_OWN" not in shown


def test_gpus_are_those_of_nvidia_s_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 PCIe, 580.65.06, 81559 MiB, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = describe()
    assert found.gpus == [Device("NVIDIA H100 PCIe", "580.65.06", "81559 MiB", "9.0")]
    backends = {one.name: one for one in found.backends}
    assert list(backends) == list(registry.BACKENDS)
    # this ONNX Runtime has no provider for it
    assert backends["onnxruntime"].devices == ["cpu"]
    for name, backend in registry.BACKENDS.items():
        if backend.devices == ("cuda",):
            assert backends[name].devices == (["cuda"] if backend.available() else [])


def test_without_the_tool_the_driver_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC\n")
    monkeypatch.setattr(environment, "_from_tool", lambda: [])
    monkeypatch.setattr(environment, "_DRIVER", version)
    monkeypatch.setattr(environment, "find_gpus", lambda: iter([Gpu("NVIDIA L4", "sm89")]))
    assert environment._gpus() == [Device("NVIDIA L4", "580.65.06", "", "8.9")]


def test_other_graphics_cards_are_told_by_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A card whose connectors have directories too, and one that is no PCI device."""
    for card, text in {"card0": "DRIVER=amdgpu\nPCI_ID=1002:744C\n", "card1": "DRIVER=vkms\n"}.items():
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "uevent").write_text(text)
    (tmp_path / "card0-DP-1").mkdir()
    monkeypatch.setattr(environment, "_CARDS", tmp_path)
    monkeypatch.setattr(environment, "_from_tool", lambda: [])
    monkeypatch.setattr(environment, "find_gpus", lambda: iter([]))
    found = describe()
    assert found.gpus == [Device("PCI 1002:744C", "amdgpu")]
    assert all("cuda" not in one.devices for one in found.backends)


def test_an_onnx_runtime_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> None:
        raise OSError("libonnxruntime.so: file too short")

    monkeypatch.setattr(environment, "load_onnxruntime", damaged)
    found = describe()
    assert found.providers == []
    assert found.problems == [
        "onnxruntime is installed and cannot be used: libonnxruntime.so: file too short"
    ]


def test_two_packages_of_one_module_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [environment.Package(name, [], "1.23") for name in ("onnxruntime", "onnxruntime-gpu")]
    monkeypatch.setattr(environment, "_packages", lambda: iter(both))
    assert "overwrite each other" in " ".join(describe().problems)
