"""Products of int8 matrices as ONNX Runtime's own operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from controlnext.export.passes import fuse_matmul_integer
from support.graphs import graph, run
from support.recipe import rand

LAYER = """
g (float[n, t, 6] x) => (float[n, t, 4] y) {
    rounded = QuantizeLinear(x, step, zero)
    read = DequantizeLinear(rounded, step, zero)
    w = DequantizeLinear <axis = 1> (weight, scale)
    product = MatMul(read, w)
    y = Add(bias, product)
}
"""


def _layer(text: str = LAYER, zero: int = 0, **weights: np.ndarray) -> ir.Model:
    """With a weight on a grid for each column."""
    given = {
        "step": np.array(0.02, np.float32),
        "zero": np.array(zero, np.int8),
        "weight": np.clip(100 * rand(0, 6, 4), -127, 127).astype(np.int8),
        "scale": np.abs(rand(1, 4)) / 100,
        "bias": rand(2, 4),
        **weights,
    }
    model = graph(text, **given)
    for name in ("zero", "weight"):
        model.graph.initializers[name].type = ir.TensorType(ir.DataType.INT8)
    return model


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_the_bias_goes_in_and_the_numbers_stay() -> None:
    whole = _layer()
    fused = fuse_matmul_integer(whole.clone())
    assert _operators(fused) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert [value.name for value in fused.graph.outputs] == ["y"]
    x = rand(3, 2, 5, 6)
    np.testing.assert_allclose(run(fused, x=x), run(whole, x=x), rtol=0, atol=1e-6)


def test_beyond_the_grid_numbers_are_cut_off_at_the_same_place() -> None:
    whole = _layer()
    x = 100 * rand(3, 1, 5, 6)
    np.testing.assert_allclose(
        run(fuse_matmul_integer(whole.clone()), x=x), run(whole, x=x), rtol=0, atol=1e-6
    )


def test_a_product_that_is_read_twice_keeps_its_bias_outside() -> None:
    text = LAYER.replace("y = Add(bias, product)", "more = Add(bias, product)\n y = Mul(more, product)")
    whole = _layer(text)
    fused = fuse_matmul_integer(whole.clone())
    assert _operators(fused) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "Mul"]
    x = rand(3, 2, 5, 6)
    np.testing.assert_allclose(run(fused, x=x), run(whole, x=x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("", "", {"zero": 3}),
        ("DequantizeLinear <axis = 1> (weight, scale)", "DequantizeLinear <axis = 0> (weight, scale)", {}),
        ("rounded = QuantizeLinear(x, step, zero)", "rounded = Cast <to = 3> (x)", {}),
        ("(weight, scale)", "(weight, scale, zeros)", {"zeros": np.array([0, 0, 0, 1], np.int8)}),
    ],
    ids=["zero point", "rows", "not rounded here", "weight with zero points"],
)
def test_other_grids_stay(old: str, new: str, change: dict[str, np.ndarray | int]) -> None:
    model = _layer(LAYER.replace(old, new), **change)  # type: ignore[arg-type]
    before = _operators(model)
    assert _operators(fuse_matmul_integer(model)) == before


def test_onnxruntime_itself_leaves_the_bias_outside(tmp_path: object) -> None:
    """Why this pass is there; where this fails it can go."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    onnxruntime.InferenceSession(ir.to_proto(_layer()).SerializeToString(), options)
    assert _operators(ir.load(options.optimized_model_filepath))[-1] == "Add"
