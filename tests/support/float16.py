"""Networks with activations as large as those of the published ones."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

# What makes a network's residual stream, and with it every sum of it, as many times larger: the weights of
# what adds to it, and the biases of what takes it as it is. The norms behind it take the factor out again.
UNET_STREAM = (
    r"denoiser\.(conv_in|.*(conv2|to_out\.0|ff(_in)?\.net\.2|proj_in|pos_embed\.linear_2))\.",
    r"denoiser\..*(conv_shortcut|samplers\.0\.conv|proj_out)\.bias",
)
VAE_STREAM = (
    r"network\.\w+coder\.(conv_in|.*\.conv2|.*\.to_out\.0)\.",
    r"network\.\w+coder\..*(conv_shortcut|samplers\.0\.conv)\.bias",
)
T5_STREAM = (r"network\.encoder\.(embed_tokens|.*\.SelfAttention\.o|.*\.wo)\.",)


def enlarge(model: ir.Model, factor: float, stream: tuple[str, ...]) -> ir.Model:
    """Return the graph with a residual stream ``factor`` times as large and the same outputs."""
    for name, value in model.graph.initializers.items():
        if any(re.match(part, name) for part in stream):
            array = value.const_value.numpy()
            value.const_value = ir.tensor((array * np.float64(factor)).astype(array.dtype), name=name)
    return model


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
