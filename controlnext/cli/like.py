"""The recipe of a run, and the options of a run from the recipe in an image (``run --like``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from controlnext.bundle.files import sha256
from controlnext.cli.option_names import argument_of
from controlnext.errors import InputError
from controlnext.lora_names import split_scale
from controlnext.regular import check_regular
from controlnext.runtime.media.image_files import MakeRecipe
from controlnext.runtime.media.recipe import InputFile, Recipe, read_recipe
from controlnext.runtime.recipes import IMAGES, make_recipe
from controlnext.runtime.samplers.steps import GIVEN_STEPS
from controlnext.secrets import HIDDEN

if TYPE_CHECKING:
    from controlnext.runtime import Pipeline

logger = logging.getLogger(__name__)

_LISTS = ("control_image", "scale", "ip_adapter_image", "ip_adapter_scale")
"""Options that may be repeated."""
_ONE_OF = ("steps", *GIVEN_STEPS)
"""Options of which a run has one."""


class Like(NamedTuple):
    """An image and the recipe in it, as they are before the run, which may replace the image."""

    path: Path
    recipe: Recipe


def read_like(path: Path | None) -> Like | None:
    """Return the image of a run that is to be done again; None if there is none.

    Raises :class:`InputError` for a file without a recipe.
    """
    return None if path is None else Like(path, read_recipe(path))


def recipe_of_run(
    pipeline: Pipeline, request: Any, given: Mapping[str, Any], like: Like | None = None
) -> MakeRecipe | None:
    """Return what makes the recipe of a run's images of its options; None for clips.

    ``like``: an image whose files have the same names in the recipe, wherever they were found now.
    """
    if pipeline.family.task != "image":
        return None
    names = {} if like is None else _names(like.recipe)

    def make(size: tuple[int, int]) -> Recipe:
        paths = {name: given[name] for name in IMAGES if name in given}
        files = {
            name: [_input_file(path, names) for path in (several if isinstance(several, list) else [several])]
            for name, several in paths.items()
        }
        loras = [Path(split_scale(one)[0]) for one in given.get("lora", ())]
        files["lora"] = [_input_file(path, names) for path in loras]
        models = given.get("preprocessor_model", ())
        return make_recipe(
            pipeline,
            request,
            files,
            size,
            preprocess=given.get("preprocess"),
            preprocessor_model=models,
        )

    return make


def _names(recipe: Recipe) -> dict[str, str]:
    """Return the names of a recipe's files by their checksums."""
    return {file.sha256: file.name for several in recipe.files.values() for file in several if file.sha256}


def _input_file(path: Path, names: Mapping[str, str]) -> InputFile:
    found = InputFile.of(path)
    return replace(found, name=names.get(found.sha256, found.name))


def like_image(like: Like, pipeline: Pipeline, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run with those of the recipe in an image in place of missing ones.

    Files are looked for beside the image and in the current directory, and are those of the image or none.
    Raises :class:`InputError` if a file is not found, or the image was made in another way than a run's.
    """
    path, recipe = like
    _check(path, recipe, pipeline, asked)
    accepted = {field.name for field in fields(pipeline.request)}
    _tell_unknown(path, recipe, {argument_of(option, accepted) for option in asked})
    taken = {name: value for name, value in asked.items() if value is not None}
    found = dict(taken)
    for option in asked:
        argument = argument_of(option, accepted)
        if option in taken or argument is None or (option in _ONE_OF and any(o in taken for o in _ONE_OF)):
            continue
        value = _of_files(path, recipe, argument)
        if value is None and argument not in IMAGES:
            value = recipe.arguments.get(argument)
        if value is not None:
            found[option] = value if option not in _LISTS or isinstance(value, list) else [value]
    found.setdefault("preprocess", recipe.preprocess)
    return {option: found.get(option) for option in asked}


def _check(path: Path, recipe: Recipe, pipeline: Pipeline, asked: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for a recipe that a run cannot follow; warn of what is not as it was."""
    if pipeline.family.task != "image":
        raise InputError(f"--like makes images, and {pipeline.family.title} clips; remove --like")
    if isinstance(recipe.arguments.get("prompt"), list):
        raise InputError(f"{path} was made with several prompts at once; do its job again with batch")
    if recipe.preprocessor_model and not (asked["preprocessor_model"] or asked["preprocess"]):
        raise InputError(
            f"{path} was made with a model of its preprocessor; nothing that an image names is downloaded or"
            f" run: give --preprocessor-model, which was {', '.join(recipe.preprocessor_model)}"
        )
    if recipe.bundle.manifest_sha256 != pipeline.bundle.checksum:
        made = f"{recipe.bundle.name} ({recipe.bundle.family}, {recipe.bundle.precision})"
        logger.warning("%s was made with another bundle, %s; the result will differ", path, made)
    texts = [recipe.arguments.get(name) for name in ("prompt", "negative_prompt")]
    if any(isinstance(text, str) and HIDDEN in text for text in texts):
        logger.warning("%s has *** in place of what looked like a secret; the result may differ", path)


def _tell_unknown(path: Path, recipe: Recipe, known: Set[str | None]) -> None:
    """Warn of arguments of the image that a run has no options for, such as those of a later version."""
    images = recipe.files.keys() - known
    if unknown := sorted({name for name in recipe.arguments if name not in known or name in IMAGES} | images):
        logger.warning(
            "%s was made with %s, which this command cannot give; the result may differ",
            path,
            ", ".join(unknown),
        )


def tell_backend(like: Like, ran_by: str) -> None:
    """Warn if the image was made by another backend than that which made it now."""
    path, recipe = like
    if recipe.backend not in ("", ran_by):
        logger.warning(
            "%s was made by %s, and now by %s: the result may differ a little", path, recipe.backend, ran_by
        )


def _of_files(path: Path, recipe: Recipe, argument: str) -> Any:
    """Return the files of an argument of the recipe; None for one that has none."""
    several = recipe.files.get(argument)
    if not several:
        return None
    if argument == "lora":
        scales = recipe.arguments.get("lora")
        if not isinstance(scales, Mapping) or any(file.name not in scales for file in several):
            raise InputError(f"{path} does not say how strong its LoRAs are; give them with --lora")
        return [f"{_find(path, file, argument)}:{scales[file.name]}" for file in several]
    found = [_find(path, file, argument) for file in several]
    return found if argument in _LISTS else found[0]


def _find(image: Path, file: InputFile, argument: str) -> Path:
    """Return a file that was used for an image; raise :class:`InputError` if it is not found."""
    for candidate in _candidates(image, PurePath(file.name)):
        try:
            if candidate.is_file() and sha256(check_regular(candidate)) == file.sha256:
                return candidate
        except OSError:
            continue
    what = f"{argument} {file.name}" if file.name else argument
    raise InputError(
        f"{image} was made with the {what} of sha256 {file.sha256[:16]}..., which is neither beside it nor in"
        f" the current directory; give it with `{argument}`",
        argument=argument,
    )


def _candidates(image: Path, name: PurePath) -> Iterator[Path]:
    """Yield the paths where a file may be: none outside the two directories."""
    for directory in (image.parent, Path()):
        if name.name and not name.is_absolute() and ".." not in name.parts:
            yield directory / name
        if name.name:
            yield directory / name.name
