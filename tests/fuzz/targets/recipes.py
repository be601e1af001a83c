"""The recipe in an image: changed JSON in its text, and changed bytes of the file."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import ClassVar

import msgspec
from PIL import Image, PngImagePlugin

from fuzz import commands
from fuzz.proposals import byte_change, file_change, json_change
from fuzz.target import Case, Target, digest

RECIPE, FILE = "recipe.json", "image.png"


class Recipes(Target):
    """Shows the recipe of an image by ``controlnext inspect``, and makes it again by ``run --like``."""

    name: ClassVar[str] = "recipe"
    seconds: ClassVar[int] = 20

    def write_sound(self, directory: Path) -> None:
        """Write a bundle, an image of it, and its recipe as JSON."""
        from controlnext.runtime import Pipeline, Request
        from controlnext.runtime.media.recipe import InputFile, text_chunks
        from controlnext.runtime.recipes import make_recipe
        from support.fake_bundle import write_fake_bundle

        bundle = write_fake_bundle(directory / "bundle", "sd15")
        Image.new("RGB", (16, 16), "red").save(directory / "control.png")
        files = {"control_image": [InputFile.of(directory / "control.png")]}
        with Pipeline.load(bundle, device="cpu", threads=1, cache=False) as pipe:
            request = Request("a cat", "a dog", num_inference_steps=2, seed=3, control_scale=0.5)
            recipe = make_recipe(pipe, request, files, (16, 16), preprocess="none")
        Image.new("RGB", (16, 16)).save(directory / FILE, pnginfo=text_chunks(recipe, (16, 16)))
        (directory / RECIPE).write_bytes(msgspec.json.encode(recipe.as_json()))

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the recipe, or the image's bytes, or put something in the image's place."""
        kind = rng.choice(("json", "json", "json", "bytes", "file"))
        if kind == "json":
            return Case(self.name, [json_change(sound / RECIPE, RECIPE, rng)])
        # without the JSON the image itself is read
        gone = {"kind": "remove", "file": RECIPE}
        change = byte_change(sound / FILE, FILE, rng) if kind == "bytes" else file_change(FILE, rng, False)
        return Case(self.name, [gone, change])

    def attempt(self, directory: Path, output: Path) -> str:
        """Show the recipe and make the image; its size and number of steps are given, as they could be
        any."""
        image, recipe = directory / FILE, directory / RECIPE
        if recipe.is_file():
            chunks = PngImagePlugin.PngInfo()
            chunks.add_text("controlnext", recipe.read_text())
            image = output / "changed.png"
            Image.new("RGB", (16, 16)).save(image, pnginfo=chunks)
        made = output / "made.png"
        try:
            commands.run("inspect", image, "--json")
            commands.run(
                *("run", directory / "bundle", "--like", image, "--control-image", directory / "control.png"),
                *("--steps", 2, "--height", 16, "--width", 16, "--num-images", 1),
                *("--backend", "onnxruntime", "--device", "cpu", "--threads", 1, "--output", made),
            )
        finally:
            if image != directory / FILE:
                image.unlink()
        return digest(Image.open(made))


TARGETS = (Recipes(),)
