"""Bundles: manifest, scheduler, tokenizers, graphs and weights, listed with their checksums or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzz import commands
from fuzz.changes import MANIFEST
from fuzz.graphs import graph_change
from fuzz.proposals import byte_change, file_change, files_of, json_change
from fuzz.target import Case, Expected, Target, digest

DESCRIPTIONS = ("sources", "tools", "parity", "scheduler", "precision")
"""What the manifest tells of a bundle's origin: it does not change an image."""
HERE = ("--backend", "onnxruntime", "--device", "cpu", "--threads", 1, "--seed", 1)


class Bundles(Target):
    """Makes an image of a bundle of small graphs by ``controlnext run``.

    ``written``: arguments of the fake bundle. ``arguments``: further ones of the command, names of files
    among them. ``graphs``: whether only the graphs are changed, with their checksums.
    """

    def __init__(
        self, name: str, written: dict[str, Any], arguments: tuple[Any, ...] = (), graphs: bool = False
    ) -> None:
        self.name = name  # type: ignore[misc]
        self._written, self._arguments, self._graphs = written, arguments, graphs

    def write_sound(self, directory: Path) -> None:
        """Write the bundle, a control image, a start image and a LoRA."""
        from support.fake_bundle import write_fake_bundle
        from support.fake_loras import write_fake_lora

        write_fake_bundle(directory / "bundle", **self._written)
        write_images(directory, "control.png", "start.png")
        write_fake_lora(directory / "lora.safetensors", 1)

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the manifest half of the time, else one of the other files."""
        if self._graphs:
            return self._of_graph(sound / "bundle", rng)
        return bundle_case(self.name, sound / "bundle", rng)

    def _of_graph(self, bundle: Path, rng: Random) -> Case:
        name = rng.choice([name for name in files_of(bundle) if name.endswith(".onnx")])
        change = graph_change(bundle / name, f"bundle/{name}", rng)
        return Case(self.name, [change, {"kind": "relist", "file": f"bundle/{name}"}])

    def attempt(self, directory: Path, output: Path) -> str:
        """Make an image."""
        image = output / "image.png"
        further = [directory / one[1:] if str(one).startswith("@") else one for one in self._arguments]
        commands.run(
            *("run", directory / "bundle", "--prompt", "a cat", "--steps", 2, "--height", 64, "--width", 64),
            *("--control-image", directory / "control.png", "--output", image, *HERE, *further),
        )
        return digest(Image.open(image))


class Inspected(Target):
    """Inspects a bundle, which reads all of its files and what there is in ``engines``."""

    name = "inspect"

    def write_sound(self, directory: Path) -> None:
        """Write a bundle."""
        from support.fake_bundle import write_fake_bundle

        write_fake_bundle(directory / "bundle", "sd15", lora_rank=4)

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change a file of the bundle."""
        return bundle_case(self.name, sound / "bundle", rng)

    def attempt(self, directory: Path, output: Path) -> str:  # noqa: ARG002
        """Inspect it, for people and for programs."""
        shown = commands.run("inspect", directory / "bundle")
        if odd := [c for c in shown if ord(c) < 32 and c != "\n"]:
            raise AssertionError(f"it shows the character {odd[0]!r}: {shown}")
        commands.run("inspect", directory / "bundle", "--json")
        return "shown"


class Clips(Target):
    """Makes a clip of a bundle of small graphs."""

    name = "clips"

    def write_sound(self, directory: Path) -> None:
        """Write the bundle and a control image."""
        from support.fake_clips import write_fake_clips

        write_fake_clips(directory / "bundle")
        write_images(directory / "frames", "1.png", "2.png")

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change a file of the bundle."""
        return bundle_case(self.name, sound / "bundle", rng)

    def attempt(self, directory: Path, output: Path) -> str:
        """Make a clip of two frames."""
        commands.run(
            *("run", directory / "bundle", "--image", directory / "frames/1.png", "--steps", 1, "--frames"),
            *(2, "--height", 64, "--width", 64, "--control-image", directory / "frames"),
            *("--output", output / "clip", *HERE),
        )
        return digest(*(Image.open(file) for file in sorted((output / "clip").iterdir())))


def write_images(directory: Path, *names: str) -> None:
    """Write images of random pixels."""
    directory.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.RandomState(seed).randint(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(directory / name)


def bundle_case(target: str, bundle: Path, rng: Random) -> Case:
    """Return a change of a bundle, beside which the case's other files are."""
    if rng.random() < 0.5:
        change = json_change(bundle / MANIFEST, f"bundle/{MANIFEST}", rng)
        return Case(target, [change], _of_manifest(change))
    name = rng.choice([name for name in files_of(bundle) if name != MANIFEST])
    file, name = bundle / name, f"bundle/{name}"
    if rng.random() < 0.2:
        return Case(target, [file_change(name, rng)], "same")
    kinds: dict[str, Callable[..., dict[str, Any]]] = {".json": json_change, ".onnx": graph_change}
    whole = kinds.get(file.suffix, byte_change) if rng.random() < 0.8 else byte_change
    change = whole(file, name, rng)
    listed = rng.random() < 0.7
    changes = [change, {"kind": "relist", "file": name}] if listed else [change]
    return Case(target, changes, "any" if listed else "same")


def _of_manifest(change: dict[str, Any]) -> Expected:
    described = change.get("path") and change["path"][0] in DESCRIPTIONS
    return "same" if described else "any"


_WHOLE = {"shallow": True, "encoder": True, "previews": True, "lora_rank": 4}
_START = ("--image", "@start.png", "--strength", 0.9)
TARGETS = (
    Bundles("bundle", _WHOLE),
    Bundles("graph", {**_WHOLE, "family_name": "sd15"}, ("--cache-interval", 2, *_START), graphs=True),
    Bundles(
        "bundle-sd15",
        {**_WHOLE, "family_name": "sd15"},
        ("--cache-interval", 2, *_START),
    ),
    Bundles("bundle-sd3", {"family_name": "sd3"}),
    Clips(),
    Inspected(),
)
"""A bundle with all kinds of graphs; one whose graphs alone are changed; other families."""
