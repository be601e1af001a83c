"""The images of a request for images: those of the controls, and image prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnext.runtime.media.inline_images import decode_image, decode_text
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.serving.bodies import Form
from controlnext.runtime.serving.calls import ImageCall

PROMPTS = "ip_adapter_image"
EDIT_FILES = ("image", PROMPTS)
"""Files of a form; the ``image`` is the control image."""


@dataclass(frozen=True)
class RequestImages:
    """Decoded images: ``controls``, and ``prompts``, one for each IP-Adapter or several for one."""

    controls: Sequence[Image.Image] = ()
    prompts: Sequence[Image.Image] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the image that the result has its size from, if there is one."""
        return self.controls[0].size if self.controls else None

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments."""
        controls = {"control_image": one_or_all(list(self.controls))} if self.controls else {}
        return {**controls, **({PROMPTS: list(self.prompts)} if self.prompts else {})}


def images_of_call(call: ImageCall, max_pixels: int) -> RequestImages:
    """Decode the images of a JSON body."""

    def decoded(field: str, texts: Sequence[str] | None) -> list[Image.Image]:
        return [decode_text(field, text, max_pixels) for text in texts or []]

    return RequestImages(
        decoded("control_image", call.control_image), decoded(PROMPTS, call.ip_adapter_image)
    )


def images_of_form(form: Form, max_pixels: int) -> RequestImages:
    """Decode the images of a form."""
    opened = [
        [decode_image(name, content, max_pixels) for content in form.files.get(name, [])]
        for name in EDIT_FILES
    ]
    return RequestImages(*opened)
