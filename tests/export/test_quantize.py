"""int8: what the passes write, what ONNX Runtime makes of it, and what the grids are chosen by."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlnext.bundle.manifest import LayerScales
from controlnext.errors import WorkError
from controlnext.export.passes.names import name_nodes
from controlnext.export.passes.observers import LARGEST, SAMPLE, SIZE, observe
from controlnext.export.passes.quantize import LEVELS, layers, quantize, to_int8, weight_scales
from controlnext.export.passes.simplify import infer_types
from controlnext.export.passes.switches import SWITCHES, switch
from controlnext.export.quantization.calibrate import choose, crop
from controlnext.export.quantization.config import DEFAULT
from controlnext.export.quantization.histogram import HistogramObserver
from controlnext.tensor_spec import TensorSpec
from support.graphs import graph, literal

RNG = np.random.default_rng(0)
# what makes ONNX Runtime stumble in a real denoiser: a tensor with several readers, movers on both sides
ATTENDED = """
g (float[n, 8, h, w] x, float[8, 8, 3, 3] kernel, float[8] bias, float[16, 8] weight_q,
   float[16, 8] weight_k, float[16, 16] weight_out) => (float[n, s, 16] y) {
    shape = Constant <value_ints = [0, 8, -1]> ()
    hidden = Conv <pads = [1, 1, 1, 1]> (x, kernel, bias)
    maps = Reshape(hidden, shape)
    tokens = Transpose <perm = [0, 2, 1]> (maps)
    turned_q = Transpose <perm = [1, 0]> (weight_q)
    turned_k = Transpose <perm = [1, 0]> (weight_k)
    q = MatMul(tokens, turned_q)
    k = MatMul(tokens, turned_k)
    sum = Add(q, k)
    back = Transpose <perm = [0, 2, 1]> (sum)
    forth = Transpose <perm = [0, 2, 1]> (back)
    turned_out = Transpose <perm = [1, 0]> (weight_out)
    y = MatMul(forth, turned_out)
}
"""
CONVOLUTION = """
g (float[n, 8, h, w] x, float[8, 8, 3, 3] kernel, float[8] bias) => (float[n, 8, h, w] y) {
    hidden = Conv <pads = [1, 1, 1, 1]> (x, kernel, bias)
    y = Relu(hidden)
}
"""
WEIGHTS = {
    "kernel": RNG.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8,
    "bias": RNG.normal(size=8).astype(np.float32),
    "weight_q": RNG.normal(size=(16, 8)).astype(np.float32),
    "weight_k": RNG.normal(size=(16, 8)).astype(np.float32),
    "weight_out": RNG.normal(size=(16, 16)).astype(np.float32) / 4,
}
X = RNG.normal(size=(2, 8, 6, 5)).astype(np.float32)


def attended() -> ir.Model:
    return name_nodes(infer_types(graph(ATTENDED, **WEIGHTS)))


def scales_of(model: ir.Model) -> dict[str, LayerScales]:
    """Grids wide enough for :data:`X`."""
    largest = {"Conv": 4.0, "MatMul": 5.0, "MatMul.2": 5.0, "MatMul.3": 32.0}
    return {
        str(layer.node.name): LayerScales(
            largest[str(layer.node.name)] / LEVELS, 5 / LEVELS if layer.node.op_type == "Conv" else None
        )
        for layer in layers(model)
    }


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    """Check the numbers of the graph; test_int8_products.py checks ONNX Runtime on a processor."""
    return literal(model).run(None, feeds)[0]


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def optimized_operators(model: ir.Model, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime, set up as usual, is left with."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return Counter(node.op_type for node in ir.load(folder / "optimized.onnx").graph)


def test_every_layer_is_found() -> None:
    assert [str(layer.node.name) for layer in layers(attended())] == [
        "Conv",
        "MatMul",
        "MatMul.2",
        "MatMul.3",
    ]


def test_int8_is_near_what_it_replaces() -> None:
    model = attended()
    wanted = run(attended(), x=X)
    assert 0 < relative(wanted, run(quantize(model, scales_of(model)), x=X)) < 0.05


def test_onnx_runtime_computes_every_layer_in_int8(tmp_path: Path) -> None:
    """No layer is left in float32, whatever reads a tensor and whatever moves it."""
    model = attended()
    operators = optimized_operators(quantize(model, scales_of(model)), tmp_path)
    assert operators["QLinearConv"] == 1
    assert operators["MatMulIntegerToFloat"] == 3
    assert not operators["Conv"] + operators["MatMul"]


def test_rounding_twice_to_one_grid_is_rounding_once() -> None:
    """The pairs around nodes that move data change no number: moved by hand, the result is the same."""
    model = quantize(attended(), {"MatMul.3": LayerScales(8 / LEVELS)})
    rounded = Counter(node.op_type for node in model.graph)
    assert rounded["QuantizeLinear"] == 3
    single = quantize(attended(), {"MatMul.3": LayerScales(8 / LEVELS)})
    for node in list(single.graph):
        if node.op_type == "QuantizeLinear" and node.name != "MatMul.3.input/QuantizeLinear":
            (pair,) = node.outputs[0].consumers()
            ir.convenience.replace_all_uses_with(pair.outputs[0], node.inputs[0])
    np.testing.assert_allclose(run(model, x=X), run(single, x=X), rtol=1e-4, atol=1e-5)


def test_a_normalized_convolution_computes_the_same_in_int8_at_every_magnitude(tmp_path: Path) -> None:
    """Rows that differ a hundredfold: one grid suits both, and ONNX Runtime still fuses the layer."""
    rows = X * np.float32([0.1, 10])[:, None, None, None]
    maps = graph(CONVOLUTION, kernel=WEIGHTS["kernel"], bias=0 * WEIGHTS["bias"])
    wanted, plain = run(maps, x=rows), name_nodes(infer_types(maps.clone()))
    scales = {"Conv": LayerScales(5 / LEVELS, 5 / LEVELS, normalized=True)}
    made = quantize(name_nodes(infer_types(maps.clone())), scales)
    for row in range(2):
        assert relative(wanted[row], run(made, x=rows)[row]) < 0.03
    fixed = run(quantize(plain, {"Conv": LayerScales(50 / LEVELS, 50 / LEVELS)}), x=rows)
    assert relative(wanted[0], fixed[0]) > 0.5
    assert optimized_operators(made, tmp_path)["QLinearConv"] == 1


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("weights", [("kernel", "bias"), ("kernel",)])
def test_an_output_of_the_graph_is_what_its_readers_get(
    weights: tuple[str, ...], normalized: bool, tmp_path: Path
) -> None:
    """Behind rounding, magnitude and bias; the convolution is still fused."""
    text = CONVOLUTION.replace("y)", "y, float[n, 8, h, w] hidden)", 1)
    if "bias" not in weights:
        text = text.replace(", float[8] bias", "").replace(", bias", "")
    maps = name_nodes(infer_types(graph(text, **{name: WEIGHTS[name] for name in weights})))
    wanted = literal(maps).run(None, {"x": X})
    made = quantize(maps, {"Conv": LayerScales(5 / LEVELS, 5 / LEVELS, normalized)})
    y, hidden = literal(made).run(["y", "hidden"], {"x": X})
    np.testing.assert_array_equal(y, np.maximum(hidden, 0))
    assert relative(wanted[1], hidden) < 0.03
    assert [str(size) for size in made.graph.outputs[1].shape or ()] == ["n", "8", "h", "w"]
    # with neither bias nor magnitude behind it, the rounded output has two readers
    fused = "bias" in weights or normalized
    assert optimized_operators(made, tmp_path)["QLinearConv"] == fused


def test_weights_are_int8_per_channel_under_their_names() -> None:
    model = attended()
    model = quantize(model, scales_of(model))
    stored = {str(name): value.const_value for name, value in model.graph.initializers.items()}
    for name, axis in (("kernel", 0), ("weight_out.transposed", 1)):
        assert stored[name].dtype == ir.DataType.INT8
        steps = stored[f"{name}.scale"].numpy()
        shape = [-1 if other == axis else 1 for other in range(stored[name].numpy().ndim)]
        weight = WEIGHTS[name.removesuffix(".transposed")]
        restored = stored[name].numpy() * steps.reshape(shape)
        wanted = weight if axis == 0 else weight.T
        assert np.all(np.abs(restored - wanted) <= steps.reshape(shape) * 0.5001)
        assert int(np.abs(stored[name].numpy()).max()) == LEVELS


def test_layers_without_grids_stay() -> None:
    model = quantize(attended(), {})
    np.testing.assert_array_equal(run(model, x=X), run(attended(), x=X))


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(WorkError, match="no layer of the graph is named"):
        quantize(attended(), {"elsewhere/Conv": LayerScales(1.0)})


def test_a_weight_of_two_layers_stays() -> None:
    text = """
    g (float[n, 4] x, float[4, 4] weight) => (float[n, 4] y) {
        first = MatMul(x, weight)
        y = MatMul(first, weight)
    }
    """
    model = name_nodes(infer_types(graph(text, weight=np.eye(4, dtype=np.float32))))
    assert not list(layers(model))


def test_switched_off_nothing_changes_and_switched_on_it_errs_as_the_int8_graph() -> None:
    model = attended()
    scales = scales_of(model)
    session = literal(switch(model, scales))
    off = session.run(None, {"x": X, SWITCHES: np.zeros(4, bool)})[0]
    np.testing.assert_allclose(off, run(attended(), x=X), rtol=1e-5, atol=1e-5)
    on = session.run(None, {"x": X, SWITCHES: np.ones(4, bool)})[0]
    # a bias that the int8 graph adds behind the rounding makes other errors, but no larger ones
    wanted = run(attended(), x=X)
    assert relative(wanted, on) == pytest.approx(
        relative(wanted, run(quantize(attended(), scales), x=X)), rel=0.3
    )


def test_taps_tell_sample_largest_and_size() -> None:
    model = observe(attended(), ["hidden", "tokens"])
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"x": X}), strict=True))
    assert found["hidden" + SIZE] == found["tokens" + SIZE] == X.size
    assert found["hidden" + LARGEST] == found["tokens" + LARGEST]
    assert len(found["hidden" + SAMPLE]) == -(-X.size // 61)
    np.testing.assert_allclose(found["y"], run(attended(), x=X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", [np.inf, 3.0], ids=["normal", "heavy tail"])
def test_the_best_step_has_the_least_error(tail: float) -> None:
    """Against trying steps on the numbers themselves."""
    numbers = RNG.normal(size=20000) if np.isinf(tail) else RNG.standard_t(tail, size=20000)
    magnitudes = HistogramObserver()
    magnitudes.add(numbers.astype(np.float32), np.abs(numbers).max())

    def error(step: float) -> float:
        return float(np.mean((np.rint(numbers / step).clip(-LEVELS, LEVELS) * step - numbers) ** 2))

    steps = np.abs(numbers).max() / LEVELS * np.geomspace(1, 1 / 64, 400)
    assert error(magnitudes.mse_optimal_scale()[0]) <= 1.02 * min(map(error, steps))


def test_a_tensor_of_zeros_has_a_grid() -> None:
    magnitudes = HistogramObserver()
    magnitudes.add(np.zeros(5, np.float32), 0.0)
    assert magnitudes.mse_optimal_scale() == (1.0, 0.0)


@given(st.lists(st.tuples(st.floats(1e-4, 0.1), st.floats(1, 1e3)), min_size=1, max_size=40))
def test_what_is_left_out_is_worth_it(measured: list[tuple[float, float]]) -> None:
    """Enough for the target unless that costs too much, and little where the target is met anyway."""
    errors = {str(index): error for index, (error, _) in enumerate(measured)}
    work = {str(index): amount for index, (_, amount) in enumerate(measured)}
    kept = choose(errors, work)
    share = sum(work[name] for name in kept) / sum(work.values())
    left = sum(error**2 for name, error in errors.items() if name not in kept)
    assert share <= DEFAULT.float_share + 1e-9
    if left > DEFAULT.target**2 + 1e-12:
        smallest = min(amount for name, amount in work.items() if name not in kept)
        assert share + smallest / sum(work.values()) > DEFAULT.float_share
    elif share > DEFAULT.free_share:
        assert all(left + errors[name] ** 2 > DEFAULT.target**2 for name in kept[-1:])


def test_weights_that_float16_can_hardly_hold_keep_a_grid() -> None:
    weight = np.full((2, 3), 1e-7, np.float32)
    steps = weight_scales(weight, 0)
    np.testing.assert_array_equal(to_int8(weight, steps, 0), np.full((2, 3), LEVELS))


def test_a_step_is_cropped_to_its_last_row_and_a_corner() -> None:
    inputs = [
        TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
        TensorSpec("control_image", "float32", ("control_batch", 3, "8*height", "8*width")),
        TensorSpec("timestep", "float32", ("batch",)),
    ]
    feed = {
        "sample": np.zeros((2, 4, 40, 12), np.float32),
        "control_image": np.zeros((1, 3, 320, 96), np.float32),
        "timestep": np.float32([1, 2]),
    }
    small = crop(feed, inputs, DEFAULT.crop)
    assert small["sample"].shape == (1, 4, 16, 12)
    assert small["control_image"].shape == (1, 3, 128, 96)
    assert small["timestep"].tolist() == [2]
