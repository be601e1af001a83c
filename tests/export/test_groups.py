"""Group normalization by an operator that ONNX Runtime has a kernel for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from controlnext.export.passes import fuse_groups
from support.graphs import graph, run
from support.recipe import rand

MAP = """
g (float[n, 6, h, w] x) => (float[n, 6, h, w] y) {
    y = GroupNormalization <num_groups = 3, epsilon = 0.01> (x, scale, shift)
}
"""
ROUNDED = """
g (float[n, 6, h, w] x) => (float[n, 6, h, w] y) {
    rounded = QuantizeLinear(x, step, zero)
    read = DequantizeLinear(rounded, step, zero)
    normal = GroupNormalization <num_groups = 3> (read, scale, shift)
    again = QuantizeLinear(normal, step, zero)
    y = DequantizeLinear(again, step, zero)
}
"""


def _both(text: str, **more: np.ndarray) -> tuple[ir.Model, ir.Model]:
    whole = graph(text, scale=rand(1, 6), shift=rand(2, 6), **more)
    if "zero" in more:
        whole.graph.initializers["zero"].type = ir.TensorType(ir.DataType.INT8)
    return whole, fuse_groups(whole.clone())


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("sizes", ["", ", w", ", h, w", ", f, h, w"], ids=["rank 2", "3", "4", "5"])
def test_the_numbers_stay_whatever_the_rank(sizes: str) -> None:
    whole, fused = _both(MAP.replace(", h, w", sizes))
    assert "GroupNormalization" not in _operators(fused)
    assert "InstanceNormalization" in _operators(fused)
    assert [value.name for value in fused.graph.outputs] == ["y"]
    x = 3 + rand(3, 2, 6, *[4, 3, 5][: sizes.count(",")])
    np.testing.assert_allclose(run(fused, x=x), run(whole, x=x), rtol=0, atol=1e-4)


def test_groups_that_are_positive_are_as_near_as_the_pass_says() -> None:
    """Its bound, at the size of a map of 512 x 512: sums of unlike channels round to one side."""
    whole, fused = _both(MAP.replace("epsilon = 0.01", "epsilon = 1e-6"))
    spread = np.exp(rand(4, 1, 6, 1, 1)) * (rand(5, 1, 6, 256, 256) + rand(6, 1, 6, 1, 1))
    x = np.maximum(spread, 0).astype(np.float32)
    wanted = run(whole, x=x.astype(np.float32))
    assert np.linalg.norm(run(fused, x=x) - wanted) <= 4e-5 * np.linalg.norm(wanted)


def test_between_int8_grids_it_loads_and_stays_on_them() -> None:
    """ONNX Runtime refuses a graph with a Reshape beside a single pair."""
    whole, fused = _both(ROUNDED, step=np.array(0.05, np.float32), zero=np.array(0, np.int8))
    x = rand(3, 2, 6, 4, 5)
    # what lies between two levels may fall to either
    np.testing.assert_allclose(run(fused, x=x), run(whole, x=x), rtol=0, atol=0.0501)
    assert np.mean(run(fused, x=x) != run(whole, x=x)) < 0.02


def test_float16_stays() -> None:
    whole = graph(MAP.replace("float[", "float16["), scale=rand(1, 6), shift=rand(2, 6))
    for name in ("scale", "shift"):
        value = whole.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=name)  # type: ignore[union-attr]
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    assert _operators(fuse_groups(whole)) == ["GroupNormalization"]
