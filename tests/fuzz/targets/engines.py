"""Engines and caches in a bundle's directory ``engines``, which the manifest does not list."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from fuzz import commands
from fuzz.proposals import byte_change, file_change, files_of, json_change
from fuzz.target import Case, Target, digest
from fuzz.targets.bundles import HERE, write_images

_BACKEND, _VERSION, _HARDWARE, _CONTENT = "tensorrt-rtx", "1.5.0", "sm86", b"an engine" * 100
_PLACES = ("bundle/engines", "bundle/engines/*", "bundle/engines/*/*")


class Engines(Target):
    """Makes an image from what ONNX Runtime has cached, inspects the bundle and looks for a built engine."""

    name = "engines"

    def write_sound(self, directory: Path) -> None:
        """Write a bundle with a built engine, and have ONNX Runtime cache its graphs."""
        from controlnext.runtime import Pipeline
        from support.fake_bundle import write_fake_bundle

        write_fake_bundle(directory / "bundle", "sd15", shallow=True)
        write_images(directory, "control.png")
        _build(directory / "bundle")
        with Pipeline.load(directory / "bundle", "onnxruntime", "cpu", threads=1) as pipe:
            control = Image.open(directory / "control.png")
            pipe("a cat", control_image=control, num_inference_steps=2, cache_interval=2)

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change one of the files below ``engines``, or a directory; sometimes it is unlisted too."""
        names = [name for name in files_of(sound) if name.startswith("bundle/engines/")]
        name = rng.choice(names)
        if rng.random() < 0.1:
            place = rng.choice([path for pattern in _PLACES for path in sorted(sound.glob(pattern))])
            kind = rng.choice(({"kind": "remove"}, {"kind": "write", "content": "x"}, {"kind": "pipe"}))
            return Case(self.name, [{**kind, "file": place.relative_to(sound).as_posix()}], "same")
        if rng.random() < 0.2:
            return Case(self.name, [file_change(name, rng)], "same")
        change = (json_change if name.endswith(".json") else byte_change)(sound / name, name, rng)
        listed = Path(name).with_name("checksums.json").as_posix()
        unlisted = {"kind": "json-remove", "file": listed, "path": [Path(name).name]}
        further = [unlisted] if rng.random() < 0.3 and name != listed else []
        return Case(self.name, [change, *further], "same")

    def attempt(self, directory: Path, output: Path) -> str:
        """Run, inspect, and read the engine."""
        bundle, image = directory / "bundle", output / "image.png"
        commands.run(
            *("run", bundle, "--prompt", "a cat", "--steps", 2, "--height", 64, "--width", 64, "--output"),
            *(image, "--control-image", directory / "control.png", "--cache-interval", 2, *HERE),
        )
        commands.run("inspect", bundle)
        _find(bundle)
        return digest(Image.open(image))


def _key(bundle: Path) -> Any:
    from controlnext.bundle.reader import read_manifest
    from controlnext.engines.tensorrt.store import Key, graph_key

    parts = graph_key(read_manifest(bundle), "unet")
    rest = {"profile": {"sample": [[1, 4, 8, 8]] * 3}, "options": {"workspace": None, "fast": False}}
    return Key(**parts, backend=_BACKEND, version=_VERSION, hardware=_HARDWARE, **rest)


def _build(bundle: Path) -> None:
    """Write an engine as a build does; no library reads it here."""
    from controlnext.engines.tensorrt.store import ENGINE, Entry, engine_directory, new_engine, write_entry

    place = engine_directory(bundle, _BACKEND, _HARDWARE, "unet")
    with new_engine(place) as made:
        (made / ENGINE).write_bytes(_CONTENT)
        write_entry(made, Entry(_key(bundle), 1.0, {"height": "64:64:64"}))


def _find(bundle: Path) -> None:
    """Look for the engine: it is what was built, or is refused."""
    from controlnext.bundle.reader import read_manifest
    from controlnext.engines.tensorrt.store import (
        EngineRequirements,
        engine_directory,
        find_engine,
        kept_engine,
    )
    from controlnext.errors import EngineError

    wanted = EngineRequirements(_BACKEND, _VERSION, "this GPU", lambda hardware: hardware == _HARDWARE)
    found = kept_engine(engine_directory(bundle, _BACKEND, _HARDWARE, "unet"), _key(bundle))
    engines = [found] if found else []
    try:
        engines.append(find_engine(bundle, read_manifest(bundle), "unet", wanted))
    except EngineError as error:
        if not str(error).strip():
            raise AssertionError("refused without a message") from error
    for engine in engines:
        if engine.path.read_bytes() != _CONTENT:
            raise AssertionError(f"a changed engine was taken for whole: {engine}")


TARGETS = (Engines(),)
