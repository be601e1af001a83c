"""Bundles: manifest, scheduler, tokenizers, graphs and weights, listed with their checksums or not."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fuzz import commands
from fuzz.changes import MANIFEST
from fuzz.proposals import byte_change, file_change, files_of, json_change
from fuzz.target import Case, Expected, Target, digest

DESCRIPTIONS = ("sources", "tools", "parity", "scheduler", "precision")
"""What the manifest tells of a bundle's origin: it does not change an image."""


class Bundles(Target):
    """Makes an image of a bundle of small graphs by ``controlnext run``."""

    name: ClassVar[str] = "bundle"

    def write_sound(self, directory: Path) -> None:
        """Write a bundle with text encoders, all kinds of graphs, a step cache and room for LoRAs."""
        from support.fake_bundle import write_fake_bundle

        write_fake_bundle(directory / "bundle", shallow=True, encoder=True, previews=True, lora_rank=4)
        pixels = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(directory / "control.png")

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the manifest half of the time, else one of the other files."""
        bundle = sound / "bundle"
        if rng.random() < 0.5:
            change = json_change(bundle / MANIFEST, f"bundle/{MANIFEST}", rng)
            return Case(self.name, [change], _of_manifest(change))
        name = rng.choice([name for name in files_of(bundle) if name != MANIFEST])
        file, name = bundle / name, f"bundle/{name}"
        if rng.random() < 0.2:
            return Case(self.name, [file_change(name, rng)], "same")
        whole_json = file.suffix == ".json" and rng.random() < 0.8
        change = json_change(file, name, rng) if whole_json else byte_change(file, name, rng)
        listed = rng.random() < 0.7
        changes = [change, {"kind": "relist", "file": name}] if listed else [change]
        return Case(self.name, changes, "any" if listed else "same")

    def attempt(self, directory: Path, output: Path) -> str:
        """Make an image."""
        image = output / "image.png"
        options: list[Any] = ["--backend", "onnxruntime", "--device", "cpu", "--threads", 1, "--seed", 1]
        commands.run(
            *("run", directory / "bundle", "--prompt", "a cat", "--steps", 2, "--height", 64),
            *("--width", 64, "--control-image", directory / "control.png", "--output", image, *options),
        )
        return digest(Image.open(image))


def _of_manifest(change: dict[str, Any]) -> Expected:
    described = change.get("path") and change["path"][0] in DESCRIPTIONS
    return "same" if described else "any"
