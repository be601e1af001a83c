"""The shortcuts of tracing: the graph is the one that the exporter makes without them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlnext.export import tracing as tracing
from controlnext.export.passes.simplify import infer_types, simplify
from controlnext.families import GraphSpec
from controlnext.tensor_spec import TensorSpec

SPEC = GraphSpec(
    name="layers",
    network="layers",
    wrapper="vae_encoder",
    inputs=(TensorSpec("sample", "float32", ("batch", 8, "height", "width")),),
    outputs=(TensorSpec("out", "float32", ("batch", "height*width", 8)),),
    trace_sizes={"batch": 2, "height": 3, "width": 5},
)


class Layers(nn.Module):
    """Every operator with a shortcut, and operators that are decomposed by every way of the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(8, 8, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, sample: Tensor) -> Tensor:
        x = self.group(sample) / sample.to(torch.float32).std(dim=(1, 2, 3), keepdim=True)
        x = x.flatten(2).transpose(1, 2).contiguous()
        value, gate = self.wide(self.layer(x)).chunk(2, dim=-1)
        x = F.dropout(self.narrow(value), 0.5, training=False) * gate
        return x.transpose(1, 2).reshape(x.shape[0], -1, 8).to(torch.float64).to(x.dtype)


class InPlace(Layers):
    """Writes into a tensor that a view of it is read from."""

    def forward(self, sample: Tensor) -> Tensor:
        x = sample.clone()
        rows = x[:, :4]
        rows.mul_(2.0)
        return super().forward(x)


@pytest.mark.export
@pytest.mark.parametrize("kind", [Layers, InPlace])
def test_a_graph_of_shortcuts_is_the_exporters_own(kind):
    """As many nodes of each operator, parameters by the same names, and PyTorch's numbers at another size."""
    torch.manual_seed(0)
    module = kind().eval().requires_grad_(False)
    model = tracing.trace(module, SPEC, {})
    sample = torch.zeros(SPEC.inputs[0].shape_at(SPEC.trace_sizes))
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    plain = torch.onnx.export(
        torch.export.export(module, (sample,), dynamic_shapes=(dynamic,), strict=False),
        dynamo=True,
        opset_version=tracing.OPSET,
        optimize=False,
        verbose=False,
    )
    assert plain is not None
    wanted = plain.model
    assert parameters(model) == parameters(wanted) == set(dict(module.named_parameters()))
    assert operators(model) == operators(wanted)

    other = torch.randn(3, 8, 7, 4)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    np.testing.assert_allclose(
        session.run(None, {"sample": other.numpy()})[0], module(other).numpy(), rtol=1e-4, atol=1e-5
    )


def parameters(model: ir.Model) -> set[str]:
    return {name for name in model.graph.initializers if "." in name}


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator make numbers: sizes may be worked out in another way."""
    model = infer_types(simplify(model))
    kinds = {ir.DataType.FLOAT, ir.DataType.DOUBLE}
    # a product of sizes is a view more or less
    return Counter(n.op_type for n in model.graph if n.outputs[0].dtype in kinds and n.op_type != "Reshape")


@pytest.mark.export
def test_what_is_done_is_reported_layer_by_layer():
    """Rising, once for each of the four layers, and a part is left for the way to ONNX."""
    done: list[float] = []
    tracing.trace(Layers().eval().requires_grad_(False), SPEC, {}, done.append)
    assert len(done) >= 4
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] < 1
