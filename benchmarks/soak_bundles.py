"""The small bundles of the soak test, made of the models that the tests use."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True)
class Subject:
    """A bundle, and the LoRAs that its calls choose, by name."""

    bundle: Path
    loras: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Path) -> Subject:
        """Return a bundle with the LoRAs that lie beside it in ``<name>-loras``."""
        files = sorted(bundle.with_name(f"{bundle.name}-loras").glob("*.safetensors"))
        return cls(bundle, {file.stem: file for file in files})


def small_images(directory: Path) -> Path:
    """Return a bundle for images with two controls, two IP-Adapters and room for LoRAs."""
    return _once(directory / "images", _make_images)


def small_clips(directory: Path) -> Path:
    """Return a bundle for clips."""
    return _once(directory / "clips", _make_clips)


def _make_images(made: Path) -> None:
    recipe, prompted = support("recipe"), support("prompted")
    with TemporaryDirectory() as scratch:
        model = prompted.Prompted("sd15", Path(scratch) / "model")
        prompted.write_prompted(
            "sd15", lambda variant: recipe.write_checkpoint(variant, Path(scratch) / variant), model.directory
        )
        loras = made.with_name("images-loras")
        loras.mkdir(exist_ok=True)
        for name in ("a", "b"):
            shutil.copy(model.directory / f"{name}.safetensors", loras)
        model.export(made, ("base", "plus"), controls=2, lora_rank=8)


def _make_clips(made: Path) -> None:
    with TemporaryDirectory() as scratch:
        checkpoint = support("recipe").write_checkpoint("svd", Path(scratch))
        support("exports").export_tiny("svd", checkpoint, "fp32", made)


def _once(bundle: Path, make: Callable[[Path], None]) -> Path:
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        support("exports").once(bundle, make)
    return bundle


def support(name: str) -> Any:
    """Return a module of the tests' helpers."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(f"support.{name}")
