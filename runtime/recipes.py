"""The recipe of a request: its arguments as they are written into the files of its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import PurePath
from typing import Any

import numpy as np

import controlnext
from controlnext.hub_names import name_of
from controlnext.runtime.media.recipe import SCHEMA, BundleOrigin, InputFile, Recipe, portable_name
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.request import Request

IMAGES = ("control_image", "image", "mask_image", "ip_adapter_image")
"""The arguments that are images, of which a recipe has the files."""
_ARRAYS = (*Request.arrays, "ip_adapter_image_embeds")
_OBJECTS = ("generator", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
_LEFT_OUT = (*IMAGES, *_ARRAYS, *_OBJECTS, "output_type", "lora")


def make_recipe(
    pipe: Pipeline,
    request: Request,
    files: Mapping[str, Sequence[InputFile]],
    size: tuple[int, int],
    *,
    preprocess: str | None = None,
    preprocessor_model: Iterable[str] = (),
) -> Recipe:
    """Return the recipe of the images of a request, which are of this width and height.

    ``files``: those of the request's images, by argument; those of its LoRAs, in the order of their names,
    if their names in the call do not tell where they are.
    """
    bundle, family = pipe.bundle, pipe.family
    manifest = bundle.manifest
    given: dict[str, Any] = {
        field.name: _plain(getattr(request, field.name))
        for field in fields(request)
        if field.name not in _LEFT_OUT and _plain(getattr(request, field.name)) != field.default
    }
    if all(steps is None for steps in request.steps.values()):
        given["num_inference_steps"] = family.default_steps
    given.setdefault("sampler", family.default_sampler)
    given.setdefault("guidance_scale", family.default_guidance)
    given["seed"] = int(request.seed)
    if request.image is None and request.upscale is None:
        # with these the result has another size than the run
        given["width"], given["height"] = size
    loras = _lora_files(pipe, request, files.get("lora"))
    if loras:
        given["lora"] = _renamed(request.lora, {name: file.name for name, file in loras.items()})
    return Recipe(
        schema=SCHEMA,
        version=controlnext.__version__,
        bundle=BundleOrigin(
            name_of(bundle.path.resolve()),
            bundle.checksum,
            family.name,
            manifest.variant,
            str(manifest.precision),
        ),
        backend=bundle.backends.get(family.denoiser, ""),
        # in one order, whatever was given and whatever is a default
        arguments=dict(sorted(given.items())),
        files={name: list(found) for name, found in {**files, "lora": [*loras.values()]}.items() if found},
        preprocess=preprocess,
        preprocessor_model=[_portable_model(one) for one in preprocessor_model],
    )


def _lora_files(pipe: Pipeline, request: Request, given: Sequence[InputFile] | None) -> dict[str, InputFile]:
    """Return the LoRAs of a request in the order in which they are applied, by their names in the call."""
    lora: Any = request.lora
    entries = lora if isinstance(lora, (list, tuple)) else [lora]
    names: list[str] = sorted({name for entry in entries for name in entry or ()})
    portable = [file.name for file in given or ()] or [portable_name(PurePath(name)) for name in names]
    found = {}
    for number, (name, shown) in enumerate(zip(names, portable, strict=True), start=1):
        # two directories may have files of one name
        unique = shown if portable.count(shown) == 1 else f"{number}-{shown}"
        found[name] = InputFile(unique, pipe.lora_checksum(name))
    return found


def _renamed(loras: Any, names: Mapping[str, str]) -> Any:
    if isinstance(loras, (list, tuple)):
        return [_renamed(one, names) for one in loras]
    return None if loras is None else {names[name]: float(scale) for name, scale in loras.items()}


def _portable_model(given: str) -> str:
    """Return a preprocessor's model, ``[OPTION=]PATH_OR_ID[:FILE]``, without directories of this machine."""
    option, equals, value = given.rpartition("=")
    return f"{option}{equals}{portable_name(PurePath(value))}"


def _plain(value: Any) -> Any:
    """Return a value of an argument as JSON has it."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
