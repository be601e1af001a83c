"""Kinds of work that write bundles or into them, for the kill campaign."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from kill_server import Ended, Moment, RunServer
from kill_tools import Kind, Tree, check, damage, is_scratch, tree
from PIL import Image

from controlnext.bundle.files import sha256
from controlnext.bundle.format import ENGINES
from controlnext.engines import artifact_cache
from support.fake_bundle import write_fake_bundle
from support.links import from_hub_cache


class Export(Kind):
    """An export, of which the destination is free or has an older bundle."""

    name, share, exports = "export", 35, True
    precisions: tuple[str, ...] = ("fp32", "fp16")

    def prepare(self, server: RunServer) -> None:
        """Write the checkpoint and an older bundle."""
        # takes seconds to import, and no other kind needs it
        from support.recipe import write_checkpoint

        write_checkpoint("sd15", self.directory / "checkpoint")
        write_fake_bundle(self.directory / "older", "sd15", text_encoders=False)
        self._server = server
        self._wanted: dict[str, Tree] = {}

    def reset(self, chance: random.Random) -> None:
        """Put the older bundle there, or nothing."""
        self.precision = chance.choice(self.precisions)
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        if chance.random() < 0.5:
            shutil.copytree(self.directory / "older", self.place / "bundle")

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Export."""
        return self._export(server, self.place / "bundle", moment)

    def _export(self, server: RunServer, bundle: Path, moment: Moment) -> Ended:
        return server.run("export", self.directory / "checkpoint", self.precision, bundle, moment=moment)

    def wanted(self) -> Tree:
        """Return the files of an undisturbed export."""
        if self.precision not in self._wanted:
            place = self.directory / self.precision
            check(self._export(self._server, place / "bundle", Moment()))
            self._wanted[self.precision] = tree(place)
        return self._wanted[self.precision]

    def faults(self, before: Tree) -> list[str]:
        """Check also that what is there is whole by its own manifest."""
        found = super().faults(before)
        bundle = self.place / "bundle"
        if bundle.exists():
            found += damage(bundle)
        return found


class Int8(Export):
    """An export with calibration."""

    name, share = "int8", 15
    precisions = ("int8",)


class Build(Kind):
    """The build of engines into a bundle, which has none or those of an earlier build."""

    name, share = "build", 30

    def prepare(self, server: RunServer) -> None:
        """Write the bundle, and build once."""
        write_fake_bundle(self.directory / "bundle", "sd15", text_encoders=False)
        shutil.copytree(self.directory / "bundle", self.place)
        check(self.run(server))
        shutil.copytree(self.place, self.directory / "built")
        self.usual = self.result()

    def reset(self, chance: random.Random) -> None:
        """Put the bundle there, with engines or without."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.directory / chance.choice(["bundle", "built"]), self.place)

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Build anew."""
        options = ["--backend", "tensorrt-rtx", "--optimization-level", 0, "--force"]
        return server.run("command", "build", self.place, *options, moment=moment)

    def result(self) -> Tree:
        """Return the names of all files with the keys of engines: their bytes differ with each build."""
        return {name: self._key(name) for name in tree(self.place)}

    def _key(self, name: str) -> str:
        path = self.place / name
        if not name.startswith(ENGINES):
            return sha256(path) if path.is_file() else ""
        return json.dumps(json.loads(path.read_bytes())["key"]) if path.name == "entry.json" else ""

    def faults(self, before: Tree) -> list[str]:
        """Check that each engine is as before, or whole and new, or not there if none was."""
        now = tree(self.place)
        found = [
            f"{name} has changed"
            for name, value in before.items()
            if not _engine_of(name) and now.get(name) != value
        ]
        engines = {place for name in {*now, *before} if (place := _engine_of(name)) and not is_scratch(name)}
        for place in sorted(engines):
            was, is_ = ({n: v for n, v in one.items() if _engine_of(n) == place} for one in (before, now))
            if is_ != was and artifact_cache.find_damage(self.place / place):
                found.append(f"{place} is neither as before nor whole")
        return found


def _engine_of(name: str) -> str:
    """Return the directory of the engine, or of a kept file, that a file belongs to; empty for others."""
    parts = name.split("/")
    return "/".join(parts[:3]) if parts[0] == ENGINES and len(parts) > 3 else ""


class Caches(Build):
    """The first run with a bundle, which writes optimized graphs into it; a bundle of symbolic links too."""

    name, share = "caches", 35

    def prepare(self, server: RunServer) -> None:
        """Write the bundle and an image, and run once."""
        Image.new("RGB", (64, 64), "white").save(self.directory / "control.png")
        write_fake_bundle(self.directory / "bundle", "sd15")
        shutil.copytree(self.directory / "bundle", self.place)
        self._image = self.directory / "images" / "image.png"
        check(self.run(server))
        shutil.copytree(self.place, self.directory / "built")
        self.usual = self.result()

    def reset(self, chance: random.Random) -> None:
        """Put the bundle there, with what a run keeps, with a part of that or without, or as links."""
        self.place = self.directory / "place"
        for made in (self.place, self.directory / "cache", self._image.parent):
            shutil.rmtree(made, ignore_errors=True)
        how = chance.choice(["bundle", "bundle", "links", "built"])
        if how == "links":
            self.place = from_hub_cache(self.directory / "bundle", self.directory / "cache")
            return
        shutil.copytree(self.directory / how, self.place)
        if how == "built":
            (kept,) = (self.place / ENGINES).iterdir()
            shutil.rmtree(kept / chance.choice(sorted(path.name for path in kept.iterdir() if path.is_dir())))

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Make an image."""
        options = ["--control-image", self.directory / "control.png", "--prompt", "a cat", "--steps", 3]
        options += ["--backend", "onnxruntime", "--device", "cpu", "--threads", 1, "--output", self._image]
        # what an image tells of the bundle has its name, which is another one in a hub's cache
        options += ["--no-metadata"]
        return server.run("command", "run", self.place, *options, moment=moment)

    def result(self) -> Tree:
        """Return the names of all files, whether what is kept is intact, and the image."""
        kept = {place for name in tree(self.place) if (place := _engine_of(name))}
        damage = {name: artifact_cache.find_damage(self.place / name) for name in kept}
        return {"image": sha256(self._image) if self._image.exists() else "", **damage}

    def faults(self, before: Tree) -> list[str]:
        """Check also that the image is whole or not there."""
        found = super().faults(before)
        if self._image.exists() and sha256(self._image) != self.usual["image"]:
            found.append("the image is not the one that a run makes")
        return found
