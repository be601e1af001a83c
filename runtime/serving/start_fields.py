"""The fields of requests for images that say how a run starts from an image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from controlnext.runtime.start_request import MOST_UPSCALE

_NAMES = ("strength", "padding_mask_crop", "overlay", "upscale", "upscale_mode")


class StartFields(BaseModel):
    """Fields with the names of the pipeline's arguments; None is as good as leaving a field out."""

    strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="How much of the image that the run starts from is changed; by default 0.8."
    )
    padding_mask_crop: int | None = Field(
        None, ge=0, description="Make only the part around the mask anew, with this margin in pixels."
    )
    overlay: bool | None = Field(None, description="Keep the image's own pixels outside the mask.")
    upscale: float | None = Field(
        None, gt=1, le=MOST_UPSCALE, description="Factor by which the image is enlarged for a second run."
    )
    upscale_mode: Literal["pixel", "latent"] | None = Field(None, description="By default pixel.")

    @property
    def start_fields(self) -> list[str]:
        """The names of the fields that were given and need an image to start from."""
        names = ["padding_mask_crop", *(["overlay"] if self.overlay else [])]
        # with upscale the strength is that of the second run
        names += [] if self.upscale else ["strength"]
        return [name for name in names if getattr(self, name) is not None]

    def start_arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments that were given."""
        return {name: getattr(self, name) for name in _NAMES if getattr(self, name) is not None}
