"""Arguments that diffusers' calls have too: generators in place of a seed, a callback after each step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.random import TorchGenerator
from controlnext.types import FloatArray

StepEnd = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]
"""A function of pipeline, step, timestep and its tensors by name, which returns those that it changed."""
LATENTS = "latents"
"""The one tensor that callbacks can ask for."""


@dataclass(frozen=True, eq=False)
class StepEndArguments:
    """The arguments; :class:`~controlnext.runtime.ImagePipeline` describes them."""

    _: KW_ONLY
    generator: Any = None
    callback_on_step_end: StepEnd | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,)

    @property
    def generators(self) -> list[Any]:
        """The generators that were given."""
        several = isinstance(self.generator, (list, tuple))
        return [*self.generator] if several else [] if self.generator is None else [self.generator]

    def check_step_end(self) -> None:
        """Raise :class:`InputError` for a value that is not accepted."""
        wrong = [one for one in self.generators if not _is_generator(one)]
        if wrong or (self.generator is not None and not self.generators):
            raise InputError(
                f"generator is {self.generator!r}; give a numpy.random.Generator, a RandomState or a"
                " torch.Generator, or a list with one for each image",
                argument="generator",
            )
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise InputError(
                f"callback_on_step_end is {self.callback_on_step_end!r}; give a function",
                argument="callback_on_step_end",
            )
        names = self.callback_on_step_end_tensor_inputs
        if not isinstance(names, (list, tuple)) or any(name != LATENTS for name in names):
            raise InputError(
                f"callback_on_step_end_tensor_inputs is {names!r}; only {LATENTS!r} can be had: the other"
                " inputs of the denoiser are bound before the first step",
                argument="callback_on_step_end_tensor_inputs",
            )


class GivenGenerators(TorchGenerator):
    """The generators that a call was given: one for all images, or one for each."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = sources

    def randn(self, shape: Sequence[int]) -> FloatArray:
        """Return standard normal numbers; of several generators each makes those of its image."""
        if len(self._sources) == 1:
            return _drawn(self._sources[0], shape)
        if len(self._sources) != shape[0]:
            raise InputError(
                f"generator has {len(self._sources)} entries for {shape[0]} images; give one for each, or"
                " one for all",
                argument="generator",
            )
        return np.concatenate([_drawn(one, (1, *shape[1:])) for one in self._sources])


def generator_of(request: Any) -> TorchGenerator:
    """Return the source of a request's random numbers: its generators, else its seed."""
    given = request.generators
    return GivenGenerators(given) if given else TorchGenerator(request.seed)


def latents_after_step(
    pipe: Any, request: StepEndArguments
) -> Callable[[int, float, FloatArray], FloatArray] | None:
    """Return what calls a request's callback after a step, and returns the latents to go on with."""
    callback = request.callback_on_step_end
    if callback is None:
        return None

    def call(index: int, timestep: float, latents: FloatArray) -> FloatArray:
        names = request.callback_on_step_end_tensor_inputs
        # a copy: the sampler may remember the array
        given = callback(pipe, index, timestep, {name: latents.copy() for name in names})
        if given is not None and not isinstance(given, Mapping):
            raise _of_callback(f"{given!r}; it must return tensors by name, or None")
        if given is None or LATENTS not in given:
            return latents
        changed = np.asarray(given[LATENTS], np.float32)
        if changed.shape != latents.shape:
            raise _of_callback(f"latents of shape {changed.shape}; they must have {latents.shape}")
        if not np.isfinite(changed).all():
            raise _of_callback("latents with NaN or infinity; they must be finite")
        return changed

    return call


def _of_callback(returned: str) -> InputError:
    return InputError(f"callback_on_step_end returned {returned}", argument="callback_on_step_end")


def _is_generator(given: object) -> bool:
    return isinstance(given, (np.random.Generator, np.random.RandomState)) or _is_torch(given)


def _is_torch(given: object) -> bool:
    """Whether it is a generator of PyTorch, which is not loaded for that: who made one has loaded it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Generator)


def _drawn(source: Any, shape: Sequence[int]) -> FloatArray:
    if isinstance(source, np.random.Generator):
        return source.standard_normal(tuple(shape), np.float32)
    if isinstance(source, np.random.RandomState):
        return source.standard_normal(tuple(shape)).astype(np.float32)
    torch = sys.modules["torch"]
    numbers: FloatArray = torch.randn(tuple(shape), generator=source, device=source.device).cpu().numpy()
    return numbers
