"""IP-Adapters: the image's tokens, and the attention to them beside that to the text (PyTorch).

The modules have the names of the published files, so that their tensors need no renaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.image_prompts import AdapterSpec

HEAD = 64
"""Width of a resampler's attention heads."""
EXPANSION = 4
"""Widening of the layers between a resampler's attentions."""


class _Projection(nn.Module):
    """The embedding of an image (N, width) -> its tokens, by a matrix."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.tokens, self.width = spec.tokens, spec.width
        self.proj = nn.Linear(spec.embedding[-1], spec.tokens * spec.width)
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, embeds: Tensor) -> Tensor:
        """Return the tokens (N, tokens, width)."""
        return self.norm(self.proj(embeds).unflatten(-1, (self.tokens, self.width)))


class _Attention(nn.Module):
    """Attention of a resampler's latents to an image's positions and to themselves."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.heads, inside = spec.heads, spec.heads * HEAD
        self.norm1, self.norm2 = nn.LayerNorm(spec.hidden), nn.LayerNorm(spec.hidden)
        self.to_q = nn.Linear(spec.hidden, inside, bias=False)
        self.to_kv = nn.Linear(spec.hidden, 2 * inside, bias=False)
        self.to_out = nn.Linear(inside, spec.hidden, bias=False)

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        key, value = self.to_kv(torch.cat([self.norm1(positions), latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), key, value, self.heads))


class _Resampler(nn.Module):
    """The hidden states of an image (N, positions, width) -> its tokens, by attention."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        hidden = spec.hidden
        self.latents = nn.Parameter(torch.zeros(1, spec.tokens, hidden))
        self.proj_in, self.proj_out = nn.Linear(spec.embedding[-1], hidden), nn.Linear(hidden, spec.width)
        self.norm_out = nn.LayerNorm(spec.width)
        wide = EXPANSION * hidden
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Attention(spec),
                    nn.Sequential(
                        nn.LayerNorm(hidden),
                        nn.Linear(hidden, wide, bias=False),
                        nn.GELU(),
                        nn.Linear(wide, hidden, bias=False),
                    ),
                ]
            )
            for _ in range(spec.depth)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Return the tokens (N, tokens, width)."""
        positions, latents = self.proj_in(states), self.latents.expand(states.shape[0], -1, -1)
        for layer in self.layers:
            attention, widened = layer.children()
            latents = attention(positions, latents) + latents
            latents = widened(latents) + latents
        return self.norm_out(self.proj_out(latents))


class _KeysValues(nn.Module):
    """Keys and values of an image's tokens in one cross-attention."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Linear(width, layer, bias=False) for _ in range(2))


_PROJECTIONS: Mapping[str, Callable[[AdapterSpec], nn.Module]] = MappingProxyType(
    {"base": _Projection, "plus": _Resampler}
)


class ImagePromptAdapter(nn.Module):
    """An IP-Adapter; its tensors are named as in the published files."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.image_proj = _PROJECTIONS[spec.kind](spec)
        # a number counts all attentions, every second of which is to the text
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): _KeysValues(spec.width, layer) for i, layer in enumerate(spec.layers)}
        )

    def tokens(self, embeds: Tensor) -> Tensor:
        """Return the tokens (B, images * tokens, width) of what is given of each image (B, images, ...)."""
        return self.image_proj(embeds.flatten(0, 1)).unflatten(0, embeds.shape[:2]).flatten(1, 2)

    def keys_values(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of ``tokens`` in the cross-attention ``layer``, counted from 0."""
        one: Any = self.ip_adapter[str(2 * layer + 1)]
        return one.to_k_ip(tokens), one.to_v_ip(tokens)


@dataclass(frozen=True)
class AdapterPrompt:
    """The image prompt of each row of a batch: ``embeds`` (B, images, ...) for ``adapter``, and its ``scale``
    (B,)."""

    adapter: ImagePromptAdapter
    embeds: Tensor
    scale: Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return attention (B, queries, width) of rows, over so many heads."""
    split = [rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (query, key, value)]
    return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def cross_attentions(denoiser: nn.Module) -> list[tuple[str, Any]]:
    """Return the denoiser's attentions to the text with their names, in the order in which adapters count
    them."""
    return [
        (name, module)
        for name, module in denoiser.named_modules()
        if hasattr(module, "get_processor") and not name.endswith("attn1")
    ]


@contextmanager
def image_prompts(denoiser: nn.Module, prompts: Sequence[AdapterPrompt]) -> Iterator[None]:
    """Add the attention to image prompts to ``denoiser`` while the context is open.

    Everything else is computed as without, and a scale of 0 adds zeros to it.
    """
    tokens = [prompt.adapter.tokens(prompt.embeds) for prompt in prompts]
    with ExitStack() as hooks:
        for layer, (_, module) in enumerate(cross_attentions(denoiser) if prompts else ()):
            one = _Layer(prompts, tokens, layer, module.heads)
            hooks.callback(module.to_q.register_forward_hook(one.keep_query).remove)
            hooks.callback(module.to_out[0].register_forward_pre_hook(one.add).remove)
        yield


class _Layer:
    """The hooks of one cross-attention."""

    def __init__(
        self, prompts: Sequence[AdapterPrompt], tokens: Sequence[Tensor], layer: int, heads: int
    ) -> None:
        self.prompts, self.tokens, self.layer, self.heads = prompts, tokens, layer, heads
        self.query: Tensor | None = None

    def keep_query(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        self.query = output

    def add(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        assert self.query is not None
        for prompt, tokens in zip(self.prompts, self.tokens, strict=True):
            key, value = prompt.adapter.keys_values(self.layer, tokens)
            added = attend(self.query, key, value, self.heads)
            hidden = hidden + prompt.scale[:, None, None] * added
        return (hidden, *rest)
