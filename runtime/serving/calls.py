"""The fields of requests, as OpenAI's API names them, and this toolkit's own beside them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.random import random_seed
from controlnext.runtime.samplers.steps import GIVEN_STEPS
from controlnext.runtime.serving.factors import LoraScales, Strength
from controlnext.runtime.serving.settings import ServerSettings, check_size
from controlnext.runtime.serving.start_fields import StartFields

MOST_CONTROLS = 8
"""Most controls that a request may have images for, before the bundle's own number is known."""
_LONGEST_PROMPT = 32_000
"""As in OpenAI's API."""


_SIZE = "^(auto|[0-9]{1,5}x[0-9]{1,5})$"


def _readable(size: str) -> str:
    if not re.fullmatch(_SIZE, size):
        raise ValueError("give width x height in pixels, such as 512x512, or auto")
    return size


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _is_number(annotation: Any) -> bool:
    """Return whether a field is a number or a list of numbers."""
    return annotation in (int, float) or any(_is_number(part) for part in get_args(annotation))


Text = Annotated[str, Field(max_length=_LONGEST_PROMPT)]
ImageSize = Annotated[str, AfterValidator(_readable), Field(json_schema_extra={"pattern": _SIZE})]
Images = Annotated[
    list[str],
    Field(min_length=1, max_length=MOST_CONTROLS),
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Scales = Annotated[
    list[Strength],
    Field(min_length=1, max_length=MOST_CONTROLS),
    BeforeValidator(_listed, json_schema_input_type=float | list[float]),
]
Timesteps = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=int | list[int]),
]
Sigmas = Annotated[
    list[Annotated[float, Field(ge=0)]],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=float | list[float]),
]
ImageFormat = Literal["png", "jpeg", "webp"]
Ratio = Annotated[float, Field(ge=0, le=1)]


class CommonCall(BaseModel):
    """The fields that images and clips share; None is as good as leaving a field out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Text | None = Field(None, description="Name of a bundle; may be left out if it is the only one.")
    size: ImageSize | None = Field(
        None,
        description="Width x height in pixels, or auto: that of the first control image.",
        examples=["512x512"],
    )
    control_scale: Scales | None = Field(
        None, description="Strength of the control, one for each or for all."
    )
    seed: int | None = Field(
        None, ge=-(2**63), le=2**64 - 1, description="Left out: a random one, which the response names."
    )
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps.")
    sigmas: Sigmas | None = Field(
        None, description="Noise levels of the steps, highest first, in place of num_inference_steps."
    )
    guidance_scale: Strength | None = Field(None, description="Classifier-free guidance; none at 1 or less.")
    sampler: Text | None = Field(None, description="Name of a sampler of the bundle's family.")
    preprocess: Text | None = Field(
        None,
        description="Preprocessor that makes the control image from the one that is sent, such as canny.",
    )
    control_start: Ratio | None = Field(None, description="Part of the run at which the control begins.")
    control_end: Ratio | None = Field(None, description="Part of the run at which the control ends.")
    guidance_end: Ratio | None = Field(
        None, description="Part of the run at which guidance ends; later steps take half the time."
    )
    cache_interval: int | None = Field(
        None, ge=1, description="The whole denoiser runs at every step of this number, a part of it between."
    )
    user: Text | None = Field(None, description="Accepted for OpenAI's clients; not used.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false as numbers, for which Python and pydantic take them."""
        if isinstance(value, bool) and bool not in get_args(
            cls.model_fields[str(info.field_name)].annotation
        ):
            raise ValueError("give a value that is neither true nor false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _only_digits(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse 1_0 in place of 10, which Python and pydantic take for the same."""
        texts = [text for text in _listed(value) if isinstance(text, str)]
        if any("_" in text for text in texts) and _is_number(
            cls.model_fields[str(info.field_name)].annotation
        ):
            raise ValueError("write the number without _")
        return value

    @property
    def width_and_height(self) -> tuple[int, int] | None:
        """The size that was asked for."""
        if self.size in (None, "auto"):
            return None
        width, height = str(self.size).split("x")
        return int(width), int(height)

    def chosen_seed(self) -> int:
        """Return the seed that was given, or a random one."""
        return random_seed() if self.seed is None else self.seed

    def steps(self, family: Family, settings: ServerSettings) -> int:
        """Return the number of steps: the family's own by default, as far as the server allows it."""
        given = [len(values) for values in self.given_steps().values()]
        return self.num_inference_steps or max(given, default=min(family.default_steps, settings.max_steps))

    def given_steps(self) -> dict[str, list[Any]]:
        """Return the fields that list the steps, by name."""
        lists = {name: getattr(self, name, None) for name in GIVEN_STEPS}
        return {name: values for name, values in lists.items() if values}

    def check(self, settings: ServerSettings) -> None:
        """Raise :class:`InputError` if more is asked for than the server allows."""
        if (self.num_inference_steps or 0) > settings.max_steps:
            raise InputError(
                f"num_inference_steps is {self.num_inference_steps}; this server takes at most"
                f" {settings.max_steps}",
                argument="num_inference_steps",
            )
        for name, values in self.given_steps().items():
            if len(values) > settings.max_steps:
                raise InputError(
                    f"{name} has {len(values)} values; this server takes at most {settings.max_steps}",
                    argument=name,
                )
        if self.width_and_height:
            check_size(self.width_and_height, settings, f"size is {self.size}")

    def arguments(self, family: Family, settings: ServerSettings) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that were given, and the number of steps."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                *("seed", "sampler", "control_start", "control_end"),
                *("guidance_end", "cache_interval"),
            )
            if getattr(self, name) is not None
        }
        if self.control_scale is not None:
            given["control_scale"] = one_or_all(self.control_scale)
        if self.width_and_height:
            given["width"], given["height"] = self.width_and_height
        given |= self.given_steps()
        if self.num_inference_steps or not self.given_steps():
            given["num_inference_steps"] = self.steps(family, settings)
        return given


class ImageFields(StartFields, CommonCall):
    """The fields of a request for images, but for the control images."""

    prompt: Text = Field(description="The image in words.")
    negative_prompt: Text | None = Field(None, description="In words, which the image should not be.")
    timesteps: Timesteps | None = Field(
        None, description="Training timesteps of the steps, highest first, in place of num_inference_steps."
    )
    lora: LoraScales | None = Field(
        None,
        description="Scales of LoRAs, by the names of the files that the server was given.",
        examples=[{"style": 0.8}],
    )
    ip_adapter_scale: Scales | None = Field(
        None, description="Strength of the image prompt; one for all IP-Adapters or one for each."
    )
    n: int | None = Field(None, ge=1, description="Number of images: one run, in which the seed goes on.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Only b64_json.")
    output_format: ImageFormat | None = Field(None, description="By default png.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    metadata: bool | None = Field(
        None, description="Whether a PNG has the arguments in its text; true unless the server leaves it out."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, description="Number of unfinished images to send, spread evenly over the steps."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description="Always opaque.")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description="Accepted for OpenAI's clients; num_inference_steps decides."
    )
    style: Literal["vivid", "natural"] | None = Field(
        None, description="Accepted for OpenAI's clients; the prompt decides."
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="Accepted for OpenAI's clients; nothing is moderated."
    )
    safety_identifier: Text | None = Field(None, description="Accepted for OpenAI's clients; not used.")

    @property
    def images(self) -> int:
        """The number of images."""
        return self.n or 1

    @property
    def format(self) -> ImageFormat:
        """The format of the result."""
        return self.output_format or "png"

    def check(self, settings: ServerSettings) -> None:
        """Raise :class:`InputError` if more is asked for than the server allows, or what it does not have."""
        super().check(settings)
        if self.images > settings.max_images:
            raise InputError(f"n is {self.n}; this server makes at most {settings.max_images}", argument="n")
        if self.response_format == "url":
            raise InputError(
                "response_format is url; this server keeps no images: give b64_json, or leave it out",
                argument="response_format",
            )
        if self.background == "transparent":
            raise InputError(
                "background is transparent; images are opaque: give auto or opaque", argument="background"
            )
        if self.format == "png" and (self.output_compression or 100) != 100:
            raise InputError(
                f"output_compression is {self.output_compression}, which png does not have; give"
                " an output_format of jpeg or webp, or leave it out",
                argument="output_compression",
            )
        if self.partial_images and not self.stream:
            raise InputError(
                f"partial_images is {self.partial_images} without stream; set stream, or leave it out",
                argument="partial_images",
            )

    def arguments(self, family: Family, settings: ServerSettings) -> dict[str, Any]:
        """Return the arguments of the pipeline's call, but for the control image."""
        given = super().arguments(family, settings)
        for name in ("negative_prompt", "guidance_scale", "lora"):
            if getattr(self, name) is not None:
                given[name] = getattr(self, name)
        given |= self.start_arguments()
        if self.ip_adapter_scale is not None:
            given["ip_adapter_scale"] = one_or_all(self.ip_adapter_scale)
        return {**given, "prompt": self.prompt, "num_images_per_prompt": self.images}


class ImageCall(ImageFields):
    """A request for images, with its images as text."""

    image: str | None = Field(
        None, description="The image that the run starts from: PNG, JPEG or WebP as base64 or as a data URL."
    )
    mask: str | None = Field(
        None, description="White, or transparent as in OpenAI's API, where the image is made anew."
    )

    control_image: Images | None = Field(
        None,
        description="PNG, JPEG or WebP as base64 or as a data URL; a list for a bundle of several controls.",
    )
    ip_adapter_image: Images | None = Field(
        None,
        description="Image prompt, likewise; a list for a bundle of several IP-Adapters, else of images that"
        " act together.",
    )
