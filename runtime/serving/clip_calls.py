"""The fields of requests for clips."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.runtime.media.clip_formats import HIGHEST_FPS, LOWEST_FPS
from controlnext.runtime.serving.calls import CommonCall, Text
from controlnext.runtime.serving.factors import Strength
from controlnext.runtime.serving.settings import ServerSettings


def _unwrapped(value: Any) -> Any:
    """Return the image of an object in OpenAI's form."""
    return value["image_url"] if isinstance(value, dict) and list(value) == ["image_url"] else value


Reference = Annotated[str, BeforeValidator(_unwrapped, json_schema_input_type=str | dict[str, str])]
Count = Annotated[int, Field(ge=1)]

_OF_PIPELINE = (
    "num_frames",
    "frames_per_batch",
    "overlap",
    "min_guidance_scale",
    "noise_aug_strength",
    "decode_chunk_size",
)
"""Fields that are arguments of the pipeline."""


class ClipFields(CommonCall):
    """The fields of a request for a clip, but for the images."""

    prompt: Text | None = Field(
        None, description="Accepted for OpenAI's clients: the models of this toolkit make clips of images."
    )
    seconds: float | None = Field(None, gt=0, description="Length of the clip, in place of num_frames.")
    fps: float | None = Field(
        None,
        ge=LOWEST_FPS,
        le=HIGHEST_FPS,
        description="Frames a second of the clip; by default those of the control clip, or 7 for images.",
    )
    num_frames: Count | None = Field(None, description="By default as many as the control clip has.")
    frames_per_batch: Count | None = Field(None, description="Frames that are denoised together.")
    overlap: int | None = Field(None, ge=0, description="Frames that two such windows share.")
    min_guidance_scale: Strength | None = Field(
        None, description="Guidance of the first frame; guidance_scale is that of the last."
    )
    noise_aug_strength: Strength | None = Field(None, description="Noise that is added to the image.")
    decode_chunk_size: Count | None = Field(None, description="Frames that are decoded together.")

    def check(self, settings: ServerSettings) -> None:
        """Raise :class:`InputError` if more is asked for than the server allows, or twice the same."""
        super().check(settings)
        if self.seconds is not None and self.num_frames is not None:
            raise InputError("both seconds and num_frames were given; remove one", argument="seconds")
        for name in ("num_frames", "frames_per_batch"):
            if (getattr(self, name) or 0) > settings.max_frames:
                raise InputError(
                    f"{name} is {getattr(self, name)}; this server takes at most {settings.max_frames}",
                    argument=name,
                )

    def arguments(self, family: Family, settings: ServerSettings) -> dict[str, Any]:
        """Return the arguments of the pipeline's call, but for the images and the length of the clip."""
        given = super().arguments(family, settings)
        given |= {name: getattr(self, name) for name in _OF_PIPELINE if getattr(self, name) is not None}
        if self.guidance_scale is not None:
            given["max_guidance_scale"] = self.guidance_scale
        return given


class ClipCall(ClipFields):
    """A request for a clip, with the images as text."""

    input_reference: Reference | None = Field(
        None,
        description="The image that the clip shows moving: base64 or a data URL, or one as image_url.",
    )
    control_clip: list[str] | None = Field(
        None, min_length=1, description="The control: an image for every frame."
    )
