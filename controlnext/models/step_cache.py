"""The step cache in a stock diffusers denoiser, by forward hooks (PyTorch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from controlnext.families import CachedFeature


@contextmanager
def cut(
    denoiser: nn.Module, cached: Sequence[CachedFeature], features: dict[str, Tensor], *, shallow: bool
) -> Iterator[None]:
    """Cut ``denoiser`` at the features ``cached`` while the context is open.

    A full step writes them into ``features``, by name; a ``shallow`` step goes on with those instead of its
    own.
    """
    with ExitStack() as hooks:
        for one in cached:
            _cut(denoiser, one, features, shallow, hooks)
        yield


def _cut(
    denoiser: nn.Module, one: CachedFeature, features: dict[str, Tensor], shallow: bool, hooks: ExitStack
) -> None:
    before: list[Tensor] = []

    def enter(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before[:] = [kwargs[one.argument]]

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        value = output[one.output] if isinstance(output, tuple) else output
        if not shallow:
            features[one.spec.name] = value - before[0] if one.since else value
            return output
        # the conditional rows, where guidance has ended since
        kept = features[one.spec.name][-len(value) :]
        value = before[0] + kept if one.since else kept
        if not isinstance(output, tuple):
            return value
        return (*output[: one.output], value, *output[one.output + 1 :])

    if one.since:
        start = denoiser.get_submodule(one.since)
        hooks.callback(start.register_forward_pre_hook(enter, with_kwargs=True).remove)
    hooks.callback(denoiser.get_submodule(one.module).register_forward_hook(leave).remove)
