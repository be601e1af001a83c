"""The tensors of a Triton model: the inputs of a request and the outputs of its responses, in one table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families.values import did_you_mean

LONGEST_TEXT = 32_000
"""Most characters of a text; as in the HTTP server."""
_OF_TRITON = "triton_"
"""The beginning of the names of parameters that are Triton's own."""


@dataclass(frozen=True)
class TensorField:
    """A tensor of one job: a value, or, where there may be ``several``, a list of any length.

    ``type``: Triton's data type without its prefix, ``"STRING"``, ``"INT32"``, ``"INT64"``, ``"FP64"`` or
    ``"BOOL"``; a STRING that is no ``text`` is the bytes of a file.
    """

    name: str
    type: str
    several: bool = False
    required: bool = False
    text: bool = True


INPUTS = (
    TensorField("prompt", "STRING", required=True),
    TensorField("negative_prompt", "STRING"),
    TensorField("control_image", "STRING", several=True, text=False),
    # FP64: the numbers that a call in Python has
    TensorField("control_scale", "FP64", several=True),
    TensorField("control_start", "FP64"),
    TensorField("control_end", "FP64"),
    TensorField("cache_interval", "INT32"),
    TensorField("preprocess", "STRING"),
    TensorField("seed", "INT64"),
    TensorField("num_inference_steps", "INT32"),
    TensorField("timesteps", "INT32", several=True),
    TensorField("sigmas", "FP64", several=True),
    TensorField("guidance_scale", "FP64"),
    TensorField("guidance_end", "FP64"),
    TensorField("sampler", "STRING"),
    TensorField("width", "INT32"),
    TensorField("height", "INT32"),
    TensorField("num_images", "INT32"),
    TensorField("partial_images", "INT32"),
)
"""The inputs of a request; ``control_image`` and ``control_scale`` have one entry for each control,
``timesteps`` and ``sigmas`` those of the steps."""
OUTPUTS = (
    TensorField("image", "STRING", several=True, text=False),
    TensorField("seed", "INT64"),
    TensorField("index", "INT32"),
    TensorField("partial", "BOOL"),
)
"""The outputs of a response: the images, the seed, the number of the response, whether others follow."""


def read_inputs(tensors: Mapping[str, np.ndarray], parameters: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a request's tensors, (1, n), by name; lists where there may be several.

    ``parameters``: the names of the request's other parameters, which is where misspelled inputs arrive.
    Raises :class:`InputError` for those, a tensor of several jobs, and a text that is not UTF-8 or too long.
    """
    known = [field.name for field in INPUTS]
    for name in parameters:
        if not name.startswith(_OF_TRITON):
            raise InputError(
                f"there is no input {name[:80]}; accepted: {', '.join(known)}{did_you_mean(name, known)}"
            )
    return {field.name: _read(field, tensors[field.name]) for field in INPUTS if field.name in tensors}


def _read(field: TensorField, tensor: np.ndarray) -> Any:
    if tensor.ndim != 2 or len(tensor) != 1 or not tensor.size:
        accepted = "(1, n)" if field.several else "(1, 1)"
        raise InputError(
            f"{field.name} has shape {tensor.shape}; it must be {accepted}: send a request for each job"
        )
    values = tensor[0].tolist()
    if field.type == "STRING" and field.text:
        values = [_text(field.name, value) for value in values]
    return values if field.several else values[0]


def _text(name: str, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not a text in UTF-8; encode it so") from error
    if len(text) > LONGEST_TEXT:
        raise InputError(f"{name} has {len(text)} characters; at most {LONGEST_TEXT} are accepted")
    return text
