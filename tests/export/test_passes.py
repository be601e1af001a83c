"""Each graph pass on a small graph that shows its rules."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from controlnext.errors import WorkError
from controlnext.export.passes.dimensions import name_dimensions
from controlnext.export.passes.names import name_nodes
from controlnext.export.passes.precision import lower_to_float16
from controlnext.export.passes.simplify import infer_types, simplify
from controlnext.tensor_spec import TensorSpec
from support.graphs import graph, run, scoped

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


NORMALIZE = """
g (float[n] x, float[1] w) => (float[n] y) {
    eps = Constant <value_float = 1e-12> ()
    big = Constant <value_float = 3e38> ()
    scaled = Mul(x, w)
    square = Mul(scaled, scaled)
    safe = Add(square, eps)
    root = Sqrt(safe)
    sum = Add(root, scaled)
    y = Min(sum, big)
}
"""


def test_float16_inside_float32_at_the_edges_and_in_kept_scopes():
    model = infer_types(graph(NORMALIZE, w=np.float32([1e-3])))
    scoped(model, square="norm", safe="norm", root="norm")
    model = infer_types(lower_to_float16(model, ["norm"]))
    types = {str(value.name): value.dtype for node in model.graph for value in node.outputs}
    assert types["scaled"] == HALF
    assert types["square"] == types["safe"] == types["root"] == FLOAT
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == FLOAT
    assert model.graph.initializers["w"].dtype == HALF
    x = np.float32([0, 1, 2])
    # the root of 1e-12 would be 0 in float16; 1e-6 itself is below its normal range and has few digits
    np.testing.assert_allclose(run(model, x=x), [1e-6, 2e-3, 4e-3], rtol=2e-2)


def test_constants_beyond_float16_are_clamped():
    model = infer_types(lower_to_float16(infer_types(graph(NORMALIZE, w=np.float32([1])))))
    constants = [n.attributes["value"].as_tensor().numpy() for n in model.graph if n.op_type == "Constant"]
    assert sorted(float(c.max()) for c in constants) == [0.0, 65504.0]


def test_what_only_feeds_a_kept_scope_stays_float32():
    text = """
    g (float[n] t) => (float[n, 1] y) {
        axes = Constant <value_ints = [1]> ()
        column = Unsqueeze(t, axes)
        y = Sin(column)
    }
    """
    model = scoped(infer_types(graph(text)), y="time_proj")
    model = lower_to_float16(model, ["time_proj"])
    assert not [node for node in model.graph if node.op_type == "Cast"]


def test_a_pattern_keeps_nodes_of_one_operator_right_in_a_module():
    model = infer_types(graph(NORMALIZE, w=np.float32([1])))
    scoped(model, scaled="net net.layer.0", square="net net.layer.1", sum="net net.layer.1.act")
    model = lower_to_float16(model, ["*.layer.[01]/Mul"])
    types = {str(value.name): value.dtype for node in model.graph for value in node.outputs}
    assert types["scaled"] == types["square"] == FLOAT
    assert types["safe"] == types["sum"] == HALF


def test_a_table_that_is_looked_up_for_a_kept_scope_is_lowered():
    text = "g (int64[n] ids, float[3, 1] w) => (float[n, 1] y) { row = Gather(w, ids) y = Sin(row) }"
    model = scoped(infer_types(graph(text, w=np.float32([[0], [1], [2]]))), y="wave")
    model = lower_to_float16(model, ["wave"])
    assert model.graph.initializers["w"].dtype == HALF
    np.testing.assert_allclose(run(model, ids=np.int64([2, 1])), np.sin([[2], [1]]), rtol=1e-6)


def test_between_kept_nodes_nothing_is_rounded_though_its_size_is_taken():
    text = """
    g (float[n, m] x) => (float[m, n] y) {
        high = Exp(x)
        turned = Transpose <perm = [1, 0]> (high)
        size = Shape(turned)
        root = Sqrt(turned)
        y = Reshape(root, size)
    }
    """
    model = scoped(infer_types(graph(text)), high="stream", root="stream")
    model = infer_types(lower_to_float16(model, ["stream"]))
    assert {str(v.name): v.dtype for n in model.graph for v in n.outputs}["turned"] == FLOAT
    # the first is far beyond 65504, its root is not
    np.testing.assert_allclose(run(model, x=np.float32([[20], [0]])), [[np.exp(10), 1]], rtol=1e-3)


def test_a_kept_scope_that_no_longer_exists_is_an_error():
    with pytest.raises(WorkError, match="gone"):
        lower_to_float16(infer_types(graph(NORMALIZE, w=np.float32([1]))), ["gone"])


def test_simplify_drops_what_changes_nothing_and_keeps_parameters():
    text = """
    g (float[n] x, float[1] w) => (float[n] y) {
        zero = Constant <value_ints = [0]> ()
        last = Constant <value_ints = [9223372036854775807]> ()
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        same = Identity(x)
        whole = Slice(same, zero, last, zero)
        kept = Div(whole, one)
        cast = Cast <to = 1> (kept)
        three = Add(one, two)
        turned = Transpose <perm = [0]> (w)
        scaled = Mul(cast, turned)
        first = Mul(scaled, three)
        again = Mul(scaled, three)
        y = Add(first, again)
    }
    """
    model = simplify(infer_types(graph(text, w=np.float32([5]))))
    assert [node.op_type for node in model.graph] == ["Transpose", "Mul", "Mul", "Add"]
    assert model.graph.initializers["w"].const_value.numpy() == [5]
    np.testing.assert_array_equal(run(model, x=np.float32([1, 2])), [30, 60])


def test_a_slice_of_a_part_stays():
    text = """
    g (float[n] x) => (float[m] y) {
        start = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [9223372036854775807]> ()
        zero = Constant <value_ints = [0]> ()
        part = Slice(x, start, last, zero)
        y = Neg(part)
    }
    """
    np.testing.assert_array_equal(run(simplify(infer_types(graph(text))), x=np.float32([1, 2])), [-2])


def test_dimensions_get_the_names_of_the_specs():
    model = infer_types(graph(NORMALIZE, w=np.float32([1])))
    x, y = TensorSpec("x", "float32", ("8*height",)), TensorSpec("y", "float32", ("8*height",))
    model = name_dimensions(model, [x], [y])
    assert str(model.graph.inputs[0].shape[0]) == "8*height"
    with pytest.raises(WorkError, match="specs say"):
        name_dimensions(model, [x], [x])


def test_nodes_are_named_after_their_modules_and_metadata_goes():
    model = scoped(
        infer_types(graph(NORMALIZE, w=np.float32([1]))), square="a a.b", safe="a a.b", root="a a.b"
    )
    model.graph[2].metadata_props["stack"] = "/home/somebody/file.py"
    model.graph.inputs[0].metadata_props["kind"] = "input"
    name_nodes(model)
    assert [node.name for node in model.graph][2:6] == ["Mul", "a.b/Mul", "a.b/Add", "a.b/Sqrt"]
    assert "somebody" not in str(ir.to_proto(model))
    assert not model.graph.inputs[0].metadata_props
