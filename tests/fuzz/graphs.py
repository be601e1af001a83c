"""Random changes of ONNX graphs, as changes of their files' bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper

from fuzz.proposals import VALUES, near

NUMBERS = (0, 1, -1, 2, 7, 63, 64, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
LOCATIONS = (
    "../../../outside/canary.txt",
    "/etc/passwd",
    "",
    ".",
    "/dev/zero",
    "model.onnx",
    "a\0b",
    "x" * 300,
)


def graph_change(file: Path, name: str, rng: Random) -> dict[str, Any]:
    """Return a change of the graph in ``file``, called ``name``: a field, a node, where its weights lie."""
    before = file.read_bytes()
    model = onnx.load_from_string(before)
    kinds = (_change_field, _change_field, _change_field, _change_node, _move_weights, _change_value, _nest)
    # some numbers are none of an enumeration
    with suppress(ValueError):
        rng.choice(kinds)(model, rng)
    after = model.SerializeToString()
    start = next((at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
    same = 0
    while same < min(len(before), len(after)) - start and before[-1 - same] == after[-1 - same]:
        same += 1
    removed, inserted = len(before) - start - same, after[start : len(after) - same]
    return {"kind": "bytes", "file": name, "at": start, "remove": removed, "insert": inserted.hex()}


def _fields(message: Message) -> list[tuple[Message, Any]]:
    """Return all fields that are set, with their messages, at any depth."""
    found: list[tuple[Message, Any]] = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.message_type is not None:
            inner = [value] if isinstance(value, Message) else value
            found += [pair for one in inner for pair in _fields(one)]
    return found


def _change_field(model: onnx.ModelProto, rng: Random) -> None:
    message, field = rng.choice(_fields(model))
    value = getattr(message, field.name)
    repeated = not isinstance(value, (int, float, str, bytes, Message))
    if field.message_type is not None or rng.random() < 0.2:
        if repeated and len(value) > 1 and rng.random() < 0.5:
            value.pop(rng.randrange(len(value)))
        elif repeated and rng.random() < 0.5:
            value.extend(list(value) * rng.choice((1, 1, 50)))
        else:
            message.ClearField(field.name)
    elif repeated:
        number = rng.randrange(len(value))
        value[number] = _other(value[number], rng)
    else:
        setattr(message, field.name, _other(value, rng))


def _other(value: Any, rng: Random) -> Any:
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value + b"x", bytes(reversed(value)), b"\xff" * len(value)))
    if isinstance(value, str):
        return rng.choice((near(value, rng, texts_only=True), *[v for v in VALUES if isinstance(v, str)]))
    if isinstance(value, float):
        return rng.choice((0.0, -value, float("nan"), float("inf"), 1e30))
    small = rng.choice((value + 1, max(0, value - 1), *range(20)))
    return small if rng.random() < 0.5 else _bounded(rng.choice(NUMBERS))


def _bounded(number: int) -> int:
    """Return a number that the fields of 32 bits take too."""
    return max(-(2**31), min(2**31 - 1, number))


def _change_node(model: onnx.ModelProto, rng: Random) -> None:
    node = rng.choice(model.graph.node)
    operators = (
        "Loop",
        "If",
        "Scan",
        "Reshape",
        "Tile",
        "Expand",
        "Pad",
        "Resize",
        "Range",
        "ConstantOfShape",
    )
    more = ("Identity", "Concat", "Transpose", "MatMul", "Conv", "Gather", "ConvTranspose", "Cast", "NonZero")
    node.op_type = rng.choice((*operators, *more))
    node.domain = rng.choice(("", "", "com.microsoft", "unknown"))


def _move_weights(model: onnx.ModelProto, rng: Random) -> None:
    """Have a tensor's data be elsewhere, at odd offsets, of odd sizes."""
    tensors = list(model.graph.initializer)
    tensor = rng.choice(tensors)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": rng.choice(("model.onnx.data", *LOCATIONS))}
    for key in ("offset", "length"):
        if rng.random() < 0.7:
            entries[key] = str(rng.choice((*NUMBERS, "x", "1e3", "")))
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.3:
        tensor.dims[:] = [rng.choice((0, 1, 1000, 2**31, 2**62, -1)) for _ in range(rng.randint(0, 4))]


def _change_value(model: onnx.ModelProto, rng: Random) -> None:
    """Give an input or output another type, name or shape, or make an output of a tensor in between."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    what = rng.choice(("type", "shape", "name", "inner", "inner"))
    if what == "type":
        kind.elem_type = rng.choice((1, 2, 3, 7, 8, 9, 10, 11, 16, 0, 99))
    elif what == "shape":
        sizes = [rng.choice((None, "batch", 1, 0, 3, -1)) for _ in range(rng.randint(0, 6))]
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, sizes))
    elif what == "name":
        value.name = rng.choice(
            (near(value.name, rng, texts_only=True), *[v.name for v in model.graph.input])
        )
    else:
        inner = rng.choice(model.graph.node)
        model.graph.node.append(
            helper.make_node(rng.choice(("Cast", "Shape", "Identity")), [inner.output[0]], ["other"])
        )
        value.name = "other"


def _nest(model: onnx.ModelProto, rng: Random) -> None:
    """Put a graph in a graph in a graph, deep; or a function that calls itself."""
    if rng.random() < 0.3:
        call = helper.make_node("Self", [model.graph.input[0].name], ["again"], domain="own")
        itself, version = helper.make_node("Self", ["x"], ["y"], domain="own"), helper.make_opsetid("own", 1)
        model.functions.append(helper.make_function("own", "Self", ["x"], ["y"], [itself], [version]))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.insert(0, call)
        return
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value_int=1)], "g", [], [])
    for number in range(rng.choice((2, 10, 28))):
        branches = {"then_branch": graph, **({"else_branch": graph} if number < 8 else {})}
        node = helper.make_node("If", ["truth"], [f"o{number}"], **branches)
        graph = helper.make_graph([node], f"g{number}", [], [])
    model.graph.node.insert(0, graph.node[0])
