"""The configuration of a Triton model, ``config.pbtxt``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from controlnext.engines.devices import device_index, device_kind
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.runtime.triton.tensors import INPUTS, OUTPUTS, TensorField


def model_config(settings: TritonSettings, decoupled: bool) -> str:
    """Return the text of ``config.pbtxt``; ``decoupled``: whether a request may have several responses.

    The configuration has no name, so that the model has that of its directory. Requests are passed on as soon
    as they come, without a delay of the dynamic batcher: the model itself lets them join those that run.
    """
    lines = [
        "# Written by controlnext triton. The inputs are those of each request; the parameters hold for all.",
        'backend: "python"',
        f"max_batch_size: {settings.max_rows}",
        f"model_transaction_policy {{ decoupled: {_bool(decoupled)} }}",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        f"instance_group [ {{ count: 1 {_placement(settings.device)} }} ]",
        *_tensors("input", INPUTS),
        *_tensors("output", OUTPUTS),
        *(
            f"parameters {{ key: {json.dumps(name)} value {{ string_value: {json.dumps(value)} }} }}"
            for name, value in settings.parameters().items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _placement(device: str) -> str:
    kind = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}.get(device_kind(device), "KIND_MODEL")
    index = device_index(device)
    return f"kind: {kind}" if index is None else f"kind: {kind} gpus: [ {index} ]"


def _tensors(side: str, fields: Sequence[TensorField]) -> Iterable[str]:
    yield f"{side} ["
    for field in fields:
        end = "" if field is fields[-1] else ","
        yield f"  {{ {' '.join(_facts(side, field))} }}{end}"
    yield "]"


def _facts(side: str, field: TensorField) -> Iterable[str]:
    yield f'name: "{field.name}" data_type: TYPE_{field.type} dims: [ {-1 if field.several else 1} ]'
    if side == "input" and field.several:
        # requests of different numbers may be passed on together
        yield "allow_ragged_batch: true"
    if side == "input" and not field.required:
        yield "optional: true"


def _bool(value: bool) -> str:
    return "true" if value else "false"
