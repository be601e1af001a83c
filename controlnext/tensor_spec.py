"""Tensor specs: the description of a graph's inputs and outputs.

Input names, dynamic axes, example inputs, optimization profiles and the runtime's checks all derive from
them, so that they cannot disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from controlnext.errors import InputError

Dim = int | str
"""A fixed size, a symbol (``"batch"``) or a multiple of one (``"8*height"``)."""


PRODUCTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"tokens": ("height", "width"), "frame_rows": ("batch", "frames")}
)
"""Symbols that are products of two others, in features of the step cache: the patches of an image, the frames
of all rows."""


def split_dim(dim: str) -> tuple[int, str]:
    """Split ``"8*height"`` into ``(8, "height")``, ``"batch"`` into ``(1, "batch")``."""
    factor, star, symbol = dim.partition("*")
    return (int(factor), symbol) if star else (1, dim)


def evaluate_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Return the size of ``dim`` where the symbols have the given ``sizes``."""
    if isinstance(dim, int):
        return dim
    factor, symbol = split_dim(dim)
    if symbol in PRODUCTS and symbol not in sizes:
        return factor * math.prod(sizes[part] for part in PRODUCTS[symbol])
    return factor * sizes[symbol]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    A dimension written ``"@name"`` in the registry is a size of the model at hand
    (``"@cross_attention_dim"``) and becomes a number in :meth:`resolve`. ``argument`` says where the PyTorch
    module takes the input if that is not a parameter of the same name: ``"added_cond_kwargs.text_embeds"``;
    ``"+sample"`` adds its channels to those of ``sample``. ``needs``: a key of the network's configuration,
    or ``"key=value"``; where it is null, or another value, the graph does not have the input.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    argument: str = ""
    needs: str = ""

    def is_input_of(self, config: Mapping[str, object]) -> bool:
        """Return whether the graph of a network with this configuration has the input."""
        key, _, wanted = self.needs.partition("=")
        value = config.get(key)
        return not key or (str(value) == wanted if wanted else value is not None)

    def resolve(self, sizes: Mapping[str, int]) -> TensorSpec:
        """Return the spec with every ``"@name"`` replaced by its size."""
        shape = tuple(
            sizes[dim[1:]] if isinstance(dim, str) and dim.startswith("@") else dim for dim in self.shape
        )
        return replace(self, shape=shape)

    def for_control(self, control: ControlInputs) -> TensorSpec:
        """Return the same input for another control, whose number is in the name and in the batch's
        symbol."""
        first = ControlInputs()
        names = {getattr(first, of): getattr(control, of) for of in ("image", "scale", "batch")}
        shape = tuple(names.get(dim, dim) if isinstance(dim, str) else dim for dim in self.shape)
        return replace(self, name=names[self.name], shape=shape)

    def symbols(self) -> set[str]:
        """Return the symbols in the shape."""
        return {split_dim(dim)[1] for dim in self.shape if isinstance(dim, str)}

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the concrete shape where the symbols have the given ``sizes``."""
        return tuple(evaluate_dim(dim, sizes) for dim in self.shape)


@dataclass(frozen=True)
class ControlInputs:
    """Names of a denoiser's inputs for control ``number``, counted from 1."""

    number: int = 1

    @property
    def image(self) -> str:
        """The control image's input: ``control_image``, ``control_image_2``, ..."""
        return self._name("control_image")

    @property
    def scale(self) -> str:
        """The control scale's input: ``control_scale``, ``control_scale_2``, ..."""
        return self._name("control_scale")

    @property
    def batch(self) -> str:
        """The symbol of the image's batch size: ``control_batch``, ``control_batch_2``, ..."""
        return self._name("control_batch")

    @property
    def network(self) -> str:
        """The control module behind them: ``control``, ``control_2``, ..."""
        return self._name("control")

    def _name(self, what: str) -> str:
        return what if self.number == 1 else f"{what}_{self.number}"


def numbered_controls(count: int) -> list[ControlInputs]:
    """Return the inputs of ``count`` controls."""
    return [ControlInputs(number) for number in range(1, count + 1)]


def control_inputs(names: Iterable[str]) -> list[ControlInputs]:
    """Return the controls of a denoiser from its inputs' ``names``, in their order: one for each control
    image.

    It does not check that each has all of its inputs; the check of the graph's signature does.
    """
    found = map(re.compile(r"control_image(?:_(\d+))?").fullmatch, names)
    return [ControlInputs(int(match[1] or 1)) for match in found if match]


def control_names(names: object) -> list[str]:
    """Return those of ``names`` that a control module may have (:attr:`ControlInputs.network`)."""
    pattern = re.compile(r"control(_[1-9]\d{0,2})?")
    given = [name for name in names if isinstance(name, str)] if isinstance(names, Iterable) else []
    return [name for name in given if pattern.fullmatch(name)]


LORA_INPUTS = LORA_DOWN, LORA_UP = "lora_down", "lora_up"
"""Inputs of a graph with room for LoRAs: the first and the second matrices of all layers, side by side."""
LORA_ROWS, LORA_RANK = "lora_rows", "lora_rank"
"""The symbols of their sizes: 1 row for the whole batch or one for each, and the rank, 0 without LoRAs."""


def lora_specs(down: int, up: int) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of :data:`LORA_DOWN` and :data:`LORA_UP`, with so many columns."""
    return (
        TensorSpec(LORA_DOWN, "float32", (LORA_ROWS, LORA_RANK, down)),
        TensorSpec(LORA_UP, "float32", (LORA_ROWS, LORA_RANK, up)),
    )


def without_loras(specs: Iterable[TensorSpec], rank: int = 0) -> dict[str, np.ndarray]:
    """Return the arrays that stand for no LoRA, zeros of this ``rank``, for those of ``specs`` that take
    LoRAs."""
    sizes = {LORA_ROWS: 1, LORA_RANK: rank}
    return {
        spec.name: np.zeros(spec.shape_at(sizes), spec.dtype) for spec in specs if spec.name in LORA_INPUTS
    }


def bind(
    specs: Sequence[TensorSpec],
    arrays: Mapping[str, np.ndarray],
    graph: str,
    known: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Check ``arrays`` against ``specs`` and return the sizes of the symbols.

    ``known``: sizes of the graph's other inputs. Raises :class:`~controlnext.errors.InputError` for a
    missing or unknown name, a wrong dtype, or a shape that contradicts the spec or another input.
    ``control_batch`` and ``lora_rows`` may be 1 or ``batch``, ``lora_rank`` 0.
    """
    names = {spec.name for spec in specs}
    if set(arrays) != names:
        missing, unknown = sorted(names - set(arrays)), sorted(set(arrays) - names)
        raise InputError(f"{graph}: inputs missing {missing}, unknown {unknown}; accepted: {sorted(names)}")
    sizes = dict(known)
    for spec in specs:
        array = arrays[spec.name]
        wanted = f"{spec.dtype} {_text(spec.shape)}"
        given = f"{array.dtype} {_text(array.shape)}"
        if array.dtype != spec.dtype or array.ndim != len(spec.shape):
            raise InputError(f"{graph}: {spec.name} is {given}, expected {wanted}")
        for size, dim in zip(array.shape, spec.shape, strict=True):
            factor, symbol = split_dim(dim) if isinstance(dim, str) else (dim, "")
            if symbol and size % factor == 0 and (size > 0 or symbol == LORA_RANK):
                expected = sizes.setdefault(symbol, size // factor) * factor
            else:
                expected = factor
            if size != expected:
                raise InputError(f"{graph}: {spec.name} is {given}, expected {wanted} with {sizes}")
    shared = {control.batch: control.image for control in control_inputs(spec.name for spec in specs)}
    for symbol, name in {**shared, LORA_ROWS: LORA_DOWN}.items():
        size = sizes.get(symbol, 1)
        if size not in (1, sizes.get("batch", size)):
            raise InputError(
                f"{graph}: {name} has batch {size}; give 1 or the batch of the other inputs, {sizes['batch']}"
            )
    return sizes


def _text(shape: Sequence[Dim]) -> str:
    return "(" + ", ".join(str(dim) for dim in shape) + ")"
