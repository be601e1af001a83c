"""int8 is the same number on every processor: what QuantizeLinear and DequantizeLinear say, literally."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from controlnext.bundle.format import MODEL, UINT8_PARTS
from controlnext.bundle.manifest import LayerScales
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.engines.onnxruntime import int8
from controlnext.engines.onnxruntime.int8 import UINT8_INT8, UINT8_UINT8, int8_form
from controlnext.errors import BundleError, WorkError
from controlnext.export.passes import fuse_matmul_integer, quantize, use_uint8_activations, use_uint8_weights
from controlnext.export.passes.names import name_nodes, name_of
from controlnext.export.passes.quantize import LEVELS
from controlnext.export.passes.simplify import infer_types
from controlnext.families import get_family
from support.feeds import make_feed
from support.graphs import graph, literal, run
from support.recipe import FAMILY_VARIANTS

EMULATOR = shutil.which("qemu-x86_64")
LAYERS = {
    "product": "g (float[n, 64] x, float[64, 48] weight, float[48] bias) => (float[n, 48] y)"
    " { product = MatMul(x, weight) y = Add(product, bias) }",
    "convolution": "g (float[n, 64, h, w] x, float[48, 64, 3, 3] weight, float[48] bias)"
    " => (float[n, 48, h, w] y) { made = Conv <pads = [1, 1, 1, 1]> (x, weight, bias) y = Relu(made) }",
    "pointwise": "g (float[n, 64, h, w] x, float[48, 64, 1, 1] weight, float[48] bias)"
    " => (float[n, 48, h, w] y) { made = Conv(x, weight, bias) y = Relu(made) }",
}  # fmt: skip
SHAPES = {"product": (64, 48), "convolution": (48, 64, 3, 3), "pointwise": (48, 64, 1, 1)}
FORMS = {
    UINT8_INT8: use_uint8_activations,
    UINT8_UINT8: lambda model: use_uint8_weights(use_uint8_activations(model)),
}

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from controlnext.engines.onnxruntime.int8 import int8_form
found = {"form": int8_form()}
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    x, wanted = (np.load(path.with_name(path.name.split(":")[0] + end)) for end in (".x.npy", ".y.npy"))
    (y,) = ort.InferenceSession(path, options).run(None, {"x": x})
    found[path.stem] = float(np.abs(y - wanted).max())
print(json.dumps(found))
"""
"""Largest differences, by the names of graphs in a folder; torch and onnx stay out of it."""


def layer(kind: str) -> tuple[ir.Model, np.ndarray]:
    """A quantized layer of the largest weights, both signs in every mixture, and activations that reach both
    ends of their grid; their sums stay on the output's grid."""
    draw = np.random.default_rng(0)
    shape = SHAPES[kind]
    weight = draw.choice(np.float32([-LEVELS, LEVELS, LEVELS]), size=shape)
    # all of one sign as well: the largest sum that there is
    weight[..., 0] = LEVELS if kind == "product" else weight[..., 0]
    model = name_nodes(infer_types(graph(LAYERS[kind], weight=weight, bias=np.float32(np.arange(48)))))
    (name,) = [name_of(node) for node in model.graph if node.op_type in ("Conv", "MatMul")]
    output = None if kind == "product" else 16384.0
    x = draw.choice(np.float32([-128, 127, 127]), size=(3, 64) if kind == "product" else (2, 64, 5, 4))
    return quantize(model, {name: LayerScales(1.0, output)}), x


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_the_largest_numbers_come_out_right(form: str, kind: str) -> None:
    """In the form that this processor runs; uint8 x uint8 is right on every one."""
    model, x = layer(kind)
    (wanted,) = literal(model).run(None, {"x": x})
    found = run(FORMS[form](fuse_matmul_integer(model.clone())), x=x)
    if form in (UINT8_UINT8, int8_form()):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    else:
        assert relative(wanted, found) > 0.1, "why there are two forms; where this fails one will do"


@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-x86_64 (Debian's qemu-user)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs this machine's libraries for x86")
def test_a_processor_without_vnni_is_told_and_right(tmp_path: Path) -> None:
    """The same graphs on an emulated Haswell: AVX2, no VNNI. uint8 x int8 is wrong there, and not chosen."""
    for kind in LAYERS:
        model, x = layer(kind)
        np.save(tmp_path / f"{kind}.x.npy", x)
        np.save(tmp_path / f"{kind}.y.npy", literal(model).run(None, {"x": x})[0])
        for form, change in FORMS.items():
            ir.save(change(fuse_matmul_integer(model.clone())), tmp_path / f"{kind}:{form}.onnx")
    command = [str(EMULATOR), "-cpu", "Haswell", sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("form") == UINT8_UINT8
    assert len(found) == len(LAYERS) * len(FORMS)
    for name, difference in found.items():
        assert (difference < 1) == name.endswith(UINT8_UINT8), (name, difference)


def test_the_product_that_processors_are_asked_is_this_one() -> None:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    inputs = [
        helper.make_tensor_value_info(n, t, None)
        for n, t in (("a", TensorProto.UINT8), ("b", TensorProto.INT8))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    assert model.SerializeToString() == int8._MATMUL_INTEGER


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_both_forms_of_a_denoiser_are_its_graph(
    variant: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a value may be rounded to the next step where sums are added in another order; and one as the
    other to the last bit where both are right."""
    bundle = tiny(variant, "int8")
    manifest = read_manifest(bundle)
    folder = get_family(manifest.family).denoiser
    found = {}
    for form in {UINT8_UINT8, int8_form()}:
        monkeypatch.setattr(int8, "int8_form", lambda form=form: form)
        with open_engine(bundle, manifest, folder, "onnxruntime", "cpu", cache=False) as engine:
            assert engine.backend == f"onnxruntime on cpu, int8 as {form}"
            feed = make_feed(engine)
            found[form] = engine.run(feed)["noise_pred"]
    (wanted,) = literal(bundle / folder / MODEL).run(["noise_pred"], feed)
    for output in found.values():
        assert relative(wanted, output) <= 0.05
        np.testing.assert_array_equal(output, found[UINT8_UINT8])


def test_an_older_bundle_is_refused_where_it_would_be_wrong(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny("sd15", "int8"), tmp_path / "bundle")
    manifest = read_manifest(bundle)
    for name in UINT8_PARTS:
        del manifest.files[f"unet/{name}"]
    monkeypatch.setattr(int8, "int8_form", lambda: UINT8_INT8)
    open_engine(bundle, manifest, "unet", "onnxruntime", "cpu", cache=False).close()
    monkeypatch.setattr(int8, "int8_form", lambda: UINT8_UINT8)
    with pytest.raises(BundleError, match="export the bundle again with `precision` int8"):
        open_engine(bundle, manifest, "unet", "onnxruntime", "cpu", cache=False)


def test_another_use_of_int8_is_an_error() -> None:
    text = "g (int8[n, 4] x) => (int8[n, 4] y) { y = Add(x, number) }"
    model = graph(text, number=np.float32([1]))
    model.graph.initializers["number"].const_value = ir.tensor(np.int8([1]), name="number")
    model.graph.initializers["number"].type = ir.TensorType(ir.DataType.INT8)
    with pytest.raises(WorkError, match=r"Add .* reads the int8 weight number"):
        use_uint8_weights(model)
