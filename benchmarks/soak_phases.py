"""The phases of the soak test. Each yields after every result whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from soak_bundles import Subject
from soak_calls import Result, leave, make_call, open_subject, refuse, result_of, run

from controlnext.errors import WorkError
from controlnext.evaluation.metrics import relative_l2
from controlnext.runtime import Batcher

BATCHED_LIMIT = 1e-4
"""The largest relative L2 of latents that a batcher made: sharing runs changes the last bits."""
BATCHED_ROWS = 4
ROUND = 16
"""Calls that are made together before what the process holds is read."""

Work = Iterator[bool]


def one_by_one(pipe: Any, wanted: Sequence[Result], count: int) -> Work:
    """Make ``count`` calls; one of ten comes after one that is refused, another after one that is left."""
    for number in range(count):
        yield _call(pipe, wanted, number)


def in_threads(pipes: Sequence[tuple[Any, Sequence[Result]]], count: int, threads: int) -> Work:
    """Make ``count`` calls of each of ``pipes``, in turns, in threads."""
    calls = [(pipe, wanted, number) for number in range(count) for pipe, wanted in pipes]
    with ThreadPoolExecutor(threads) as pool:
        for part in _parts(calls):
            yield from list(pool.map(lambda call: _call(*call), part))


def loads(subject: Subject, backend: str, wanted: Sequence[Result], count: int, threads: int | None) -> Work:
    """Load the bundle ``count`` times, with a call of each."""
    for number in range(count):
        with open_subject(subject, backend, threads) as pipe:
            yield _call(pipe, wanted, number)


def batched(pipe: Any, wanted: Sequence[Result], count: int) -> Work:
    """Submit ``count`` calls to a batcher; of ten, one more is cancelled, and one more fails in a step."""
    with Batcher(pipe, max_rows=BATCHED_ROWS, max_waiting=2 * ROUND) as batcher:
        for numbers in _parts(range(count)):
            futures = [_submit(batcher, pipe, number % len(wanted)) for number in numbers]
            stopped = [_submit(batcher, pipe, number % len(wanted)) for number in numbers[::10]]
            broken = [_submit(batcher, pipe, number % len(wanted), _fail) for number in numbers[::10]]
            for future in stopped:
                future.cancel()
            fails = all(isinstance(future.exception(), WorkError) for future in broken)
            for number, future in zip(numbers, futures, strict=True):
                made = result_of(pipe, future.result())
                yield fails and _is_near(made, wanted[number % len(wanted)])


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + ROUND] for start in range(0, len(values), ROUND))


def _call(pipe: Any, wanted: Sequence[Result], number: int) -> bool:
    kind = number % len(wanted)
    call = make_call(kind, pipe)
    # by the round, so that every call meets each of them
    between = (number + number // len(wanted)) % 10
    if between == 4:
        refuse(pipe, call, number // 10)
    if between == 9:
        leave(pipe, call)
    return run(pipe, call).digest == wanted[kind].digest


def _submit(
    batcher: Batcher, pipe: Any, kind: int, on_step: Callable[[Any], None] | None = None
) -> Future[Any]:
    return batcher.submit(**make_call(kind, pipe), output_type="np", on_step=on_step)


def _fail(_step: object) -> None:
    raise WorkError("an observer that fails")


def _is_near(made: Result, wanted: Result) -> bool:
    same = made.latents.shape == wanted.latents.shape and made.images.shape == wanted.images.shape
    return same and bool(
        np.isfinite(made.images).all() and relative_l2(made.latents, wanted.latents) < BATCHED_LIMIT
    )
