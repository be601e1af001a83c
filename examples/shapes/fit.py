"""The training loop of all stages: AdamW with warm-up, decay and a running average."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOG_EVERY, SNAPSHOT_EVERY = 50, 250
WARM_UP = 100


@dataclass(frozen=True)
class TrainingPlan:
    """Length, batch size and learning rate of a stage."""

    steps: int
    batch: int
    rate: float
    drawings: int
    averaging: float = 0.0
    cool_down: float = 0.0
    """Last share of the steps, in which the rate falls linearly to zero."""


def fit(
    parameters: list[nn.Parameter], loss: Callable[[], Tensor], plan: TrainingPlan, save: Callable[[], None]
) -> None:
    """Optimize with AdamW; `save` is called with the running average of the parameters if the plan has
    one."""
    optimizer = torch.optim.AdamW(parameters, plan.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    average = [parameter.detach().clone() for parameter in parameters]
    start, total = time.monotonic(), 0.0
    for step in range(1, plan.steps + 1):
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        decay = min(plan.averaging, step / (step + 10)) if plan.averaging else 0.0
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        total += float(value.detach())
        if step % LOG_EVERY == 0:
            seconds = time.monotonic() - start
            print(f"{step}/{plan.steps}  {seconds:.0f} s  loss {total / LOG_EVERY:.5f}", flush=True)
            total = 0.0
        if step % SNAPSHOT_EVERY == 0 or step == plan.steps:
            with swapped(parameters, average):
                save()


@contextmanager
def swapped(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Set the parameters to `values` within the block."""
    held: list[Tensor] = [*parameters]
    own = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(held, values)
        yield
        torch._foreach_copy_(held, own)


def _rate(step: int, plan: TrainingPlan) -> float:
    """Return the factor of the learning rate: warm-up, constant, then linear decay."""
    left = 1 - step / plan.steps
    return min((step + 1) / WARM_UP, 1.0, left / plan.cool_down if plan.cool_down else 1.0)
