"""LoRAs as inputs of a network: a branch beside each layer, by forward hooks (PyTorch).

The branch adds ``up(down(x))`` to the layer's output. ``down`` and ``up`` are columns of two tensors
(rows, rank, columns): one row for the whole batch, or one for each of its rows. The rank may be 0.

Branches are operators of their own, so that a tracer has nothing to find out about their inside: their
result has the shape of the layer's output. :mod:`controlnext.export.lora_branches` has them in ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.bundle.manifest import LoraLayer, LoraRoom


@torch.library.custom_op("controlnext::lora_linear", mutates_args=())
def lora_linear(
    output: Tensor, source: Tensor, downs: Tensor, ups: Tensor, down: Sequence[int], up: Sequence[int]
) -> Tensor:
    """Return the ``output`` (B, [tokens,] out) of a linear layer for ``source``, with its branch.

    ``down``, ``up``: the first of its columns in ``downs`` and ``ups``, and the one after the last.
    """
    rows = source.unsqueeze(1) if source.ndim == 2 else source
    added = rows @ downs[:, :, slice(*down)].transpose(1, 2) @ ups[:, :, slice(*up)]
    return output + (added.squeeze(1) if source.ndim == 2 else added)


@torch.library.custom_op("controlnext::lora_convolution", mutates_args=())
def lora_convolution(
    output: Tensor,
    source: Tensor,
    downs: Tensor,
    ups: Tensor,
    down: Sequence[int],
    up: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Return the ``output`` (B, out, height, width) of a convolution for ``source``, with its branch."""
    if not downs.shape[1]:
        # PyTorch's convolution takes no empty weights
        return output.clone()
    downs, ups = (tensor.expand(len(source), -1, -1) for tensor in (downs, ups))
    added = []
    for one, first, second in zip(source, downs[:, :, slice(*down)], ups[:, :, slice(*up)], strict=True):
        weight = first.reshape(-1, *kernel, one.shape[0]).permute(0, 3, 1, 2)
        low = nn.functional.conv2d(one[None], weight, stride=tuple(stride), padding=tuple(padding))
        added.append(torch.einsum("ro,rhw->ohw", second, low[0]))
    return output + torch.stack(added)


@lora_linear.register_fake
@lora_convolution.register_fake
def _shape(output: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(output)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Yield name and module of each layer that can have a branch."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_plain(module)):
            yield name, module


def _is_plain(module: nn.Conv2d) -> bool:
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return plain and not isinstance(module.padding, str)


@contextmanager
def lora_branches(network: nn.Module, room: LoraRoom | None, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Add the branches of the layers of ``room`` to ``network`` while the context is open.

    ``inputs``: the two inputs for LoRAs; none, as without room, for no branches.
    """
    with ExitStack() as hooks:
        for layer in room.layers if room and inputs else ():
            downs, ups = inputs
            add = partial(_with_branch, layer, downs, ups)
            hooks.callback(network.get_submodule(layer.name).register_forward_hook(add).remove)
        yield


def _with_branch(
    layer: LoraLayer, downs: Tensor, ups: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    (source,) = args
    columns = layer.down, layer.up
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        shape = module.kernel_size, module.stride, module.padding
        return lora_convolution(output, source, downs, ups, *columns, *shape)
    return lora_linear(output, source, downs, ups, *columns)
