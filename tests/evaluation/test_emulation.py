"""Emulation of float16 arithmetic on a CPU rounds every result, and graphs measure their tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from controlnext.errors import WorkError
from controlnext.export.passes.attention import decompose_attention
from controlnext.export.passes.emulate import emulate_float16
from controlnext.export.passes.names import name_nodes
from controlnext.export.passes.precision import lower_to_float16
from controlnext.export.passes.ranges import OUTPUTS, add_ranges
from controlnext.export.passes.simplify import infer_types
from support.graphs import graph, run


def half(text: str, **weights: np.ndarray) -> ir.Model:
    """Return the float16 graph of the bundle."""
    return infer_types(lower_to_float16(infer_types(graph(text, **weights))))


SQUARE_ROOT = "g (float[n] x, float[1] w) => (float[n] y) { s = Mul(x, w) q = Mul(s, s) y = Sqrt(q) }"
FEED = {"x": np.float32([300, 2, 1e-4, 0.1])}


def test_a_processor_hides_what_overflows_and_underflows_in_float16():
    found = run(half(SQUARE_ROOT, w=np.float32([1])), **FEED)
    np.testing.assert_allclose(found, FEED["x"], rtol=1e-3)


def test_emulation_rounds_and_overflows_as_numpys_float16_does():
    w = np.float32([1.1])
    found = run(emulate_float16(half(SQUARE_ROOT, w=w)), **FEED)
    with np.errstate(over="ignore"):
        scaled = FEED["x"].astype(np.float16) * w.astype(np.float16)
        wanted = np.sqrt(scaled * scaled)
    assert np.isinf(wanted[0])
    assert wanted[2] == 0
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_only_chosen_values_are_rounded():
    model = infer_types(graph(SQUARE_ROOT, w=np.float32([1])))
    found = run(emulate_float16(model, lambda value: value.name == "q"), **FEED)
    np.testing.assert_array_equal(found, np.sqrt(np.float32([np.inf, 4, 0, np.float16(0.01)])))


def test_sums_inside_an_operator_are_float32():
    text = "g (float[n, k] x, float[k, m] w) => (float[n, m] y) { y = MatMul(x, w) }"
    x, w = np.full((1, 4096), 2.0, np.float32), np.full((4096, 1), 4.0, np.float32)
    # a float16 sum of eights stays at 16384, where its neighbours are 16 apart
    assert run(emulate_float16(half(text, w=w)), x=x) == 2.0 * 4.0 * 4096
    assert np.isinf(run(emulate_float16(half(text, w=2 * w)), x=x))


ATTENTION = """
g (float[1, 2, n, 16] q, float[1, 2, m, 16] k, float[1, 2, m, 16] v{mask}) => (float[1, 2, n, 16] y) {{
    y = {call}
}}
"""
MASKS = {
    "": "Attention(q, k, v)",
    "scaled": "Attention <scale: float = 0.5> (q, k, v)",
    "float": "Attention(q, k, v, mask)",
    "bool": "Attention(q, k, v, mask)",
}


@pytest.mark.parametrize("kind", MASKS)
def test_attention_taken_apart_gives_the_same(kind: str):
    masked = kind in ("float", "bool")
    mask = f", {kind}[n, m] mask" if masked else ""
    model = infer_types(graph(ATTENTION.format(mask=mask, call=MASKS[kind])))
    draw = np.random.default_rng(0)
    feed = {name: draw.standard_normal((1, 2, 5, 16)).astype(np.float32) for name in "qkv"}
    if masked:
        numbers = draw.standard_normal((5, 5)).astype(np.float32)
        feed["mask"] = numbers if kind == "float" else numbers > -1
    wanted = run(model, **feed)
    opened = decompose_attention(model)
    assert "Attention" not in {node.op_type for node in opened.graph}
    np.testing.assert_allclose(run(opened, **feed), wanted, rtol=1e-5, atol=1e-6)


def test_scores_are_scaled_before_they_are_summed():
    """Attention scales query and key first, as TensorRT requires: scores that fit float16 only scaled are
    finite."""
    text = ATTENTION.format(mask="", call=MASKS[""])
    model = emulate_float16(decompose_attention(half(text)))
    feed = {name: np.full((1, 2, 3, 16), 90.0, np.float32) for name in "qkv"}
    assert 16 * 90 * 90 > 65504 > 16 * 90 * 90 / 4
    np.testing.assert_allclose(run(model, **feed), 90, rtol=1e-3)
    too_much = {name: 2 * value for name, value in feed.items()}
    assert np.isnan(run(model, **too_much)).all()


def test_an_attention_of_another_kind_is_an_error():
    text = ATTENTION.format(mask="", call="Attention <is_causal: int = 1> (q, k, v)")
    with pytest.raises(WorkError, match="Attention"):
        decompose_attention(infer_types(graph(text)))


def test_a_graph_tells_how_far_its_numbers_reach():
    model = name_nodes(infer_types(graph(SQUARE_ROOT, w=np.float32([2]))))
    names = add_ranges(model)
    assert names == ["Mul", "Mul.2", "Sqrt"]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    x = np.float32([0, -300, 1e-4, 1])
    peaks, flushed = session.run(list(OUTPUTS), {"x": x})
    np.testing.assert_allclose(peaks, [600, 360000, 600])
    np.testing.assert_array_equal(flushed, [0, 0, 0])
    # the square of 1e-4 is 1e-8: below 6e-8, the smallest number that float16 has, by more than half
    flushed = session.run(["flushed"], {"x": x / 2})[0]
    np.testing.assert_array_equal(flushed, [0, 0.25, 0])
