"""Cross normalization and its injection into a stock diffusers denoiser by forward hooks (PyTorch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlnext.errors import CheckpointError
from controlnext.families import Injection

Size = tuple[int, int]
Pool = Callable[[Tensor, Size], Tensor]
"""Average pooling of maps (B, C, h, w) to a height and width."""


class Control(NamedTuple):
    """One control: its ``feature`` (B, C, h', w'), the requested ``scale``, (B,) or a scalar, and the scale
    that its module ``learned``, if any."""

    feature: Tensor
    scale: Tensor
    learned: Tensor | None = None


def adaptive_pool(maps: Tensor, size: Size) -> Tensor:
    """Pool maps (B, C, h, w) to ``size`` with PyTorch's adaptive average pooling."""
    return F.adaptive_avg_pool2d(maps, size)


def averaging_pool(maps: Tensor, size: Size) -> Tensor:
    """Pool as :func:`adaptive_pool` does, by two matrix products, which can be exported with dynamic
    sizes."""
    rows = _averaging_matrix(maps.shape[-2], size[0])
    columns = _averaging_matrix(maps.shape[-1], size[1])
    return torch.matmul(torch.matmul(rows, maps), columns.transpose(0, 1))


def _averaging_matrix(count: int, pooled: int) -> Tensor:
    """Return (pooled, count): row i averages the elements from floor(i count / pooled) up to, not including,
    ceil((i + 1) count / pooled), the windows of adaptive pooling."""
    row, column = torch.arange(pooled)[:, None], torch.arange(count)[None, :]
    inside = (column >= row * count // pooled) & (column < ((row + 1) * count + pooled - 1) // pooled)
    weights = inside.to(torch.float32)
    return weights / weights.sum(1, keepdim=True)


class CrossNormalization(nn.Module):
    """The sum ``x + sum of strength * align(c, x)`` over the features ``c`` of some controls.

    Each control is aligned to ``x`` separately. It is a module, so that its operations have its name in
    an exported graph.
    """

    def __init__(self, injection: Injection, pool: Pool = adaptive_pool) -> None:
        super().__init__()
        self.injection = injection
        self.pool = pool

    def forward(self, x: Tensor, controls: Sequence[Control], grid: Size | None = None) -> Tensor:
        """Return ``x`` with ``controls`` added; ``x``: a map (B, C, h, w), or tokens (B, h w, C) with
        ``grid`` (h, w)."""
        total = x
        for control in controls:
            c = self._align(control.feature, x, grid or (x.shape[-2], x.shape[-1]))
            if grid:
                c = c.flatten(2).transpose(1, 2)
            # in the published order of the factors, for the same rounding
            c = c * self._factor(control).reshape(-1, *[1] * (x.ndim - 1))
            total = total + (c if self.injection.gain == 1 else c * self.injection.gain)
        return total

    def _align(self, c: Tensor, x: Tensor, size: Size) -> Tensor:
        for operation in self.injection.order.split(", "):
            if operation == "normalize":
                c = self._normalize(c, x)
            elif c.shape[-2:] != size:
                c = self.pool(c, size)
        return c

    def _normalize(self, c: Tensor, x: Tensor) -> Tensor:
        mean_x, std_x = _statistics(x)
        mean_c, std_c = _statistics(c)
        return (c - mean_c) * (std_x / (std_c + self.injection.eps)) + mean_x

    def _factor(self, control: Control) -> Tensor:
        scale = control.scale if control.learned is None else control.learned * control.scale
        return scale.sigmoid() if self.injection.use_sigmoid else scale


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation over all axes but the batch, (B, 1, 1, 1) each."""
    axes = tuple(range(1, x.ndim))
    return x.mean(axes).reshape(-1, 1, 1, 1), x.std(axes).reshape(-1, 1, 1, 1)


def _target(denoiser: nn.Module, injection: Injection) -> nn.Module:
    try:
        return denoiser.get_submodule(injection.module)
    except AttributeError as error:  # also for a module that its configuration switches off
        raise CheckpointError(
            f"the denoiser ({type(denoiser).__name__}) has no module {injection.module}, where the control is"
            f" injected at the {injection.at}; give a base whose denoiser has it, or a control of"
            " another variant"
        ) from error


@contextmanager
def inject(
    denoiser: nn.Module, normalization: CrossNormalization, controls: Sequence[Control]
) -> Iterator[None]:
    """Add ``controls`` at the injection point of ``denoiser`` while the context is open.

    Raises :class:`CheckpointError` if the denoiser does not have the module of the injection point.
    """
    injection = normalization.injection
    target = _target(denoiser, injection)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (normalization(args[0], controls), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": normalization(kwargs["hidden_states"], controls)}

    def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if injection.tokens:
            height, width = args[0].shape[-2:]
            return normalization(output, controls, (height // module.patch_size, width // module.patch_size))
        if isinstance(output, tuple):
            return (normalization(output[0], controls), *output[1:])
        return normalization(output, controls)

    if injection.at == "input":
        handle = target.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = target.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
