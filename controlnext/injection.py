"""Cross normalization and its injection into a stock diffusers denoiser by forward hooks (PyTorch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from controlnext.registry import Injection


class CrossNormalization(nn.Module):
    """``x + strength * align(c, x)`` for feature ``x`` (B, C, h, w) and control ``c`` (1 or B, C, h', w').

    A module, so that its operations carry its name in an exported graph.
    """

    def __init__(self, injection: Injection) -> None:
        super().__init__()
        self.injection = injection

    def forward(self, x: Tensor, c: Tensor, strength: Tensor) -> Tensor:
        """``strength`` is (B,) or a scalar."""
        for operation in self.injection.order.split(", "):
            c = self._normalize(c, x) if operation == "normalize" else self._pool(c, x)
        return x + c * strength.reshape(-1, *[1] * (x.ndim - 1))

    def _normalize(self, c: Tensor, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim))
        mean_x, std_x = x.mean(axes, keepdim=True), x.std(axes, keepdim=True)
        mean_c, std_c = c.mean(axes, keepdim=True), c.std(axes, keepdim=True)
        return (c - mean_c) * (std_x / (std_c + self.injection.eps)) + mean_x

    def _pool(self, c: Tensor, x: Tensor) -> Tensor:
        if c.shape[-2:] == x.shape[-2:]:
            return c
        return F.adaptive_avg_pool2d(c, (x.shape[-2], x.shape[-1]))


@contextmanager
def inject(
    denoiser: nn.Module, normalization: CrossNormalization, feature: Tensor, strength: Tensor
) -> Iterator[None]:
    """While the context lasts, ``denoiser`` runs with ``feature`` added at the injection point."""
    injection = normalization.injection
    target = denoiser.get_submodule(injection.module)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (normalization(args[0], feature, strength), *args[1:]), kwargs
        hidden = normalization(kwargs["hidden_states"], feature, strength)
        return args, {**kwargs, "hidden_states": hidden}

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (normalization(output[0], feature, strength), *output[1:])
        return normalization(output, feature, strength)

    if injection.at == "input":
        handle = target.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = target.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
