"""Name nodes after the modules they come from, and remove all other metadata of the exporter.

Rules:
- a node's name is its module's dotted path, a slash and its operator, numbered if that is not unique
  (``denoiser.down_blocks.0.resnets.0.conv1/Conv``): profilers and per-layer comparison use it;
- all metadata and documentation strings are removed: the exporter's stack traces hold paths of the build
  machine and
  are larger than the graph.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as common

SCOPES = "pkg.torch.onnx.name_scopes"


def name_of(named: ir.Node | ir.Value) -> str:
    """Return the name of a node or value; all in a graph have one."""
    assert named.name is not None
    return named.name


def module_scopes(node: ir.Node) -> list[str]:
    """Return the dotted paths of the modules around ``node``, outermost first."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    # the last entry is the operation itself; sizes of inputs are under a hook of the exporter
    return [scope for scope in scopes[:-1] if scope and not scope.startswith("_")]


def name_nodes(model: ir.Model) -> ir.Model:
    """Return the model with named nodes and without metadata."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scopes = module_scopes(node)
        name = f"{scopes[-1]}/{node.op_type}" if scopes else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}.{seen[name]}"
    common.ClearMetadataAndDocStringPass()(model)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for value in values + [value for node in model.graph for value in node.outputs]:
        value.metadata_props.clear()
    return model
