"""Image prompts in a stock pipeline, as diffusers loads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from controlnext.weights.ip_adapter import AdapterWeights


@contextmanager
def with_image_prompts(
    pipeline: Any, adapters: Sequence[AdapterWeights], scale: float | Sequence[float]
) -> Iterator[None]:
    """Have diffusers load the ``adapters``, if any, into ``pipeline``, which has their image encoder, at this
    ``scale``; they are gone when the context closes."""
    if not adapters:
        yield
        return
    denoiser = pipeline.unet
    processors = dict(denoiser.attn_processors)
    pipeline.load_ip_adapter([_published(one) for one in adapters], "", [""] * len(adapters))
    pipeline.set_ip_adapter_scale([scale] * len(adapters) if isinstance(scale, (int, float)) else [*scale])
    hook = denoiser.register_forward_pre_hook(_as_many_rows, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        denoiser.encoder_hid_proj = None
        denoiser.config.encoder_hid_dim_type = None
        denoiser.set_attn_processor(processors)


def _published(adapter: AdapterWeights) -> dict[str, dict[str, Any]]:
    """Return the tensors as in a published file."""
    state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in adapter.tensors.items():
        group, _, inside = name.partition(".")
        state[group][inside] = tensor.float()
    return state


def _as_many_rows(_denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave the conditional half of the image prompts alone once guidance has ended: diffusers' callback does
    not reach them."""
    sample = args[0] if args else kwargs["sample"]
    added = kwargs["added_cond_kwargs"]
    rows = [embeds[-len(sample) :] for embeds in added["image_embeds"]]
    return args, {**kwargs, "added_cond_kwargs": {**added, "image_embeds": rows}}
