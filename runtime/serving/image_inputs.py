"""The images of a request for images: those of the controls, what the run starts from, and image
prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps

from controlnext.errors import InputError
from controlnext.runtime.media.inline_images import bytes_of, decode_image
from controlnext.runtime.media.recipe import InputFile
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.serving.bodies import Form
from controlnext.runtime.serving.calls import ImageCall, ImageFields
from controlnext.runtime.serving.errors import EDIT_FIELDS, IMAGE_FIELDS

PROMPTS = "ip_adapter_image"
EDIT_FILES = ("image", "mask", "control_image", PROMPTS)
"""Files of a form. Without a ``control_image`` the ``image`` is that."""


@dataclass(frozen=True)
class RequestImages:
    """Decoded images: ``controls``, the ``image`` that the run starts from, its ``mask``, and image
    ``prompts``, one for each IP-Adapter or several for one; ``files``: what they were decoded from, by the
    pipeline's arguments."""

    controls: Sequence[Image.Image] = ()
    image: Image.Image | None = None
    mask: Image.Image | None = None
    prompts: Sequence[Image.Image] = ()
    files: Mapping[str, Sequence[InputFile]] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the image that the result has its size from, if there is one."""
        first = self.image or next(iter(self.controls), None)
        return None if first is None else first.size

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments."""
        given = {
            "image": self.image,
            "mask_image": None if self.mask is None else opaque_mask(self.mask),
            "control_image": one_or_all(list(self.controls)) if self.controls else None,
            PROMPTS: list(self.prompts) or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def opaque_mask(mask: Image.Image) -> Image.Image:
    """Return a mask that is white where the image is made anew.

    One with transparent parts is as in OpenAI's API: there the image is made anew.
    """
    if not mask.has_transparency_data:
        return mask
    alpha = mask.convert("RGBA").getchannel("A")
    return mask if alpha.getextrema()[0] == 255 else ImageOps.invert(alpha)


def images_of_call(call: ImageCall, max_pixels: int) -> RequestImages:
    """Decode the images of a JSON body."""
    contents = {}
    for name in EDIT_FILES:
        given = getattr(call, name)
        texts = [given] if isinstance(given, str) else given or []
        contents[name] = [bytes_of(name, text) for text in texts]
    return _decoded(contents, max_pixels)


def images_of_form(form: Form, max_pixels: int) -> RequestImages:
    """Decode the images of a form."""
    contents = {name: form.files.get(name, []) for name in EDIT_FILES}
    return _decoded(contents, max_pixels, "control_image" if contents["control_image"] else "image")


def _decoded(
    contents: Mapping[str, Sequence[bytes]], max_pixels: int, controls: str = "control_image"
) -> RequestImages:
    """Decode images, given by the names of their fields; ``controls``: the field of the control images."""
    opened = {
        name: [decode_image(name, content, max_pixels) for content in several]
        for name, several in contents.items()
    }
    names = {"mask": "mask_image", controls: "control_image"}
    files = {
        names.get(name, name): [InputFile("", hashlib.sha256(content).hexdigest()) for content in several]
        for name, several in contents.items()
        if several
    }
    image, mask = (
        opened[name][0] if opened[name] and name != controls else None for name in ("image", "mask")
    )
    return RequestImages(opened[controls], image, mask, opened[PROMPTS], files)


def read_texts(form: Form) -> None:
    """Take control images that a form has as base64 for files: OpenAI's clients send no further files.

    Raises :class:`InputError` for a text that is not base64.
    """
    given = form.fields.pop("control_image", [])
    texts = given if isinstance(given, list) else [given]
    files = [bytes_of("control_image", str(text)) for text in texts]
    if files:
        form.files["control_image"] = [*form.files.get("control_image", []), *files]


def check_form(form: Form, call: ImageFields) -> None:
    """Raise :class:`InputError` for files that do not belong together."""
    for name in ("image", "mask"):
        count = len(form.files.get(name, []))
        if count > 1 and "control_image" in form.files:
            raise InputError(f"{count} files {name} were given; give one", argument=name)
    starts = [*(["mask"] if "mask" in form.files else []), *call.start_fields]
    if starts and "control_image" not in form.files:
        raise InputError(
            f"{starts[0]} was given without control_image; send the control image as control_image, and the"
            " one to edit as image",
            argument="control_image",
        )


def fields_of_form(form: Form) -> Mapping[str, str]:
    """Return a form's fields by the pipeline's arguments, where the names differ."""
    return IMAGE_FIELDS if "control_image" in form.files else EDIT_FIELDS
