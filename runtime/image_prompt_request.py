"""The arguments of a call for image prompts, and the checks that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from controlnext.errors import InputError
from controlnext.types import FloatArray

Scale = float | Sequence[float] | FloatArray


@dataclass(frozen=True, eq=False)
class ImagePromptArguments:
    """The arguments of image prompts; :class:`~controlnext.runtime.ImagePipeline` describes them."""

    _: KW_ONLY
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: FloatArray | Sequence[FloatArray] | None = None
    ip_adapter_scale: Scale | Sequence[Scale] = 1.0

    def check_image_prompts(self) -> None:
        """Raise :class:`InputError` for arguments that no model accepts."""
        if self.ip_adapter_image is not None and self.ip_adapter_image_embeds is not None:
            raise InputError(
                "ip_adapter_image and ip_adapter_image_embeds were given; remove one of the two",
                argument="ip_adapter_image_embeds",
            )
