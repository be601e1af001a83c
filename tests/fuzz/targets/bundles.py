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

    ``write``: writes the bundle. ``arguments``: further ones of the command, those that begin with ``@``
    names of files. ``graphs``: whether only the graphs are changed, with their checksums.
    """

    def __init__(
        self, name: str, write: Callable[[Path], None], arguments: tuple[Any, ...] = (), graphs: bool = False
    ) -> None:
        self.name = name  # type: ignore[misc]
        self._write, self._arguments, self._graphs = write, arguments, graphs

    def write_sound(self, directory: Path) -> None:
        """Write the bundle, a control image, a start image and a LoRA."""
        from support.fake_loras import write_fake_lora

        self._write(directory / "bundle")
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


class Previewed(Bundles):
    """Shows previews of a run's steps and its images, through Python."""

    def attempt(self, directory: Path, output: Path) -> str:  # noqa: ARG002
        """Stream a run."""
        from controlnext.runtime import Pipeline

        control = Image.open(directory / "control.png")
        with Pipeline.load(directory / "bundle", "onnxruntime", "cpu", threads=1) as pipe:
            latents = [
                step.latents for step in pipe.stream("a cat", control_image=control, num_inference_steps=2)
            ]
            shown = [image for one in latents for image in pipe.unfinished(one)]
            return digest(*shown, *pipe.decode(latents[-1]))


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


def fake(*names: str, **options: Any) -> Callable[[Path], None]:
    """Return a function that writes a fake bundle with these options."""

    def write(directory: Path) -> None:
        from support.fake_bundle import write_fake_bundle

        write_fake_bundle(directory, *names, **options)

    return write


def _prompted(directory: Path) -> None:
    from support.fake_prompts import write_fake_prompts

    write_fake_prompts(directory)


_WHOLE: dict[str, Any] = {"shallow": True, "encoder": True, "previews": True, "lora_rank": 4}
_CACHED = ("--cache-interval", 2, "--image", "@start.png", "--strength", 0.9)
TARGETS = (
    Bundles("bundle", fake(**_WHOLE)),
    Bundles("graph", fake("sd15", **_WHOLE), _CACHED, graphs=True),
    Bundles("bundle-sd15", fake("sd15", **_WHOLE), _CACHED),
    Bundles("bundle-sd3", fake("sd3")),
    Bundles("image-prompt", _prompted, ("--ip-adapter-image", "@start.png")),
    Previewed("preview", fake("sd15", previews=True)),
    Clips(),
    Inspected(),
)
"""A bundle with all kinds of graphs; one whose graphs alone are changed; other families; what else is asked
of a bundle."""
