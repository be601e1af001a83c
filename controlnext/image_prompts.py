"""Image prompts: the kinds of IP-Adapters, and the denoiser's inputs for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from controlnext.tensor_spec import TensorSpec

SCALE = "ip_adapter_scale"
"""The denoiser's input for the scales: a column for each adapter."""
IMAGE_ENCODER = "image_encoder"
"""Name of the network that reads image prompts, and of its graph."""


@dataclass(frozen=True)
class AdapterKind:
    """A kind of IP-Adapter: the image encoder's output that it reads, and what stands for no image in the
    unconditional half, as in diffusers: zeros, or with ``encodes_zeros`` that output for an image of
    zeros."""

    title: str
    output: str
    encodes_zeros: bool


KINDS: Mapping[str, AdapterKind] = MappingProxyType(
    {
        "base": AdapterKind("IP-Adapter", "image_embeds", encodes_zeros=False),
        "plus": AdapterKind("IP-Adapter Plus", "image_hidden_states", encodes_zeros=True),
    }
)
"""The kinds by name."""


@dataclass(frozen=True)
class AdapterSpec:
    """Widths of an adapter, as read from its tensors.

    ``embedding``: the shape of what it reads of an image, (width,) or (positions, width). ``tokens``: the
    number that it makes of an image, each of ``width``, that of the denoiser's text. ``layers``: the width of
    each cross-attention of the denoiser. ``hidden``, ``heads``, ``depth``: of a resampler.
    """

    kind: str
    embedding: tuple[int, ...]
    tokens: int
    width: int
    layers: tuple[int, ...]
    hidden: int = 0
    heads: int = 0
    depth: int = 0


@dataclass(frozen=True)
class AdapterInputs:
    """Names of adapter ``number``, counted from 1."""

    number: int = 1

    @property
    def embeds(self) -> str:
        """The denoiser's input: ``ip_adapter_image_embeds``, ``ip_adapter_image_embeds_2``, ..."""
        return self._name("ip_adapter_image_embeds")

    @property
    def images(self) -> str:
        """The symbol of its number of images: ``image_prompts``, ``image_prompts_2``, ..."""
        return self._name("image_prompts")

    @property
    def network(self) -> str:
        """The module that reads it: ``ip_adapter``, ``ip_adapter_2``, ..."""
        return self._name("ip_adapter")

    def spec(self, embedding: Iterable[int]) -> TensorSpec:
        """Return the input's spec; ``embedding``: shape of what the adapter reads of an image."""
        return TensorSpec(self.embeds, "float32", ("batch", self.images, *embedding))

    def _name(self, what: str) -> str:
        return what if self.number == 1 else f"{what}_{self.number}"


def numbered_adapters(count: int) -> list[AdapterInputs]:
    """Return the inputs of ``count`` adapters."""
    return [AdapterInputs(number) for number in range(1, count + 1)]


def scale_spec(count: int) -> TensorSpec:
    """Return the spec of the scales of ``count`` adapters."""
    return TensorSpec(SCALE, "float32", ("batch", count))


def is_image_count(symbol: str) -> bool:
    """Return whether a symbol is the number of images of an adapter."""
    return re.fullmatch(r"image_prompts(_\d+)?", symbol) is not None
