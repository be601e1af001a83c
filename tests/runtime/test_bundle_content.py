"""Files of a bundle whose checksums are right and whose content is not: one line, whatever is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from controlnext.errors import BundleError
from controlnext.runtime import Pipeline
from support.exports import list_anew
from support.fake_bundle import write_fake_bundle

SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"
CONTENTS = {
    "not JSON": (SCHEDULER, b"{", "is not readable JSON"),
    "nested without end": (SCHEDULER, b"[" * 10**5, "is not readable JSON"),
    "a list": (SCHEDULER, b"[]", "is not a JSON object"),
    "other bytes": (SCHEDULER, b'{"a": "\xff"}', "is not text in UTF-8"),
    "no tokenizer": (TOKENIZER, b"{}", "holds no usable tokenizer"),
    "a tokenizer in bytes": (TOKENIZER, b"\xff", "is not text in UTF-8"),
}
CHANGES: dict[str, tuple[list[str], Any, str]] = {
    "no truncation": (["truncation"], None, "holds no usable tokenizer"),
    "other lengths": (["padding", "strategy"], {"Fixed": 3}, "truncates prompts to 8 tokens and pads them"),
    "a length that no memory holds": (["truncation", "max_length"], 2**62, "at most 65536"),
    "another kind of model": (["model", "type"], "None", "holds no usable tokenizer"),
    "no unknown token": (["model", "unk_token"], "<none>", "holds no usable tokenizer"),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "sd15")


def refused(bundle: Path, message: str) -> None:
    list_anew(bundle)
    image = np.zeros((64, 64, 3), np.float32)
    with pytest.raises(BundleError, match=message) as caught, Pipeline.load(bundle, "onnxruntime") as pipe:
        pipe("a strange cat", control_image=image, num_inference_steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_other_content_is_one_line(bundle: Path, name: str) -> None:
    file, content, message = CONTENTS[name]
    (bundle / file).write_bytes(content)
    refused(bundle, message)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_tokenizer_is_one_line(bundle: Path, name: str) -> None:
    path, value, message = CHANGES[name]
    content = json.loads((bundle / TOKENIZER).read_text())
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (bundle / TOKENIZER).write_text(json.dumps(content))
    refused(bundle, message)


@pytest.mark.parametrize(("operator", "given"), [("Shape", "int64 "), ("Flatten", "float32 ")])
def test_a_graph_with_another_output_is_one_line(bundle: Path, operator: str, given: str) -> None:
    """Without a check NumPy would fail on it, or make an image of it."""
    file = bundle / "unet" / "model.onnx"
    model = onnx.load(file)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node(operator, ["inner"], ["noise_pred"]))
    kind = onnx.TensorProto.INT64 if operator == "Shape" else onnx.TensorProto.FLOAT
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("noise_pred", kind, None))
    onnx.save(model, file)
    refused(bundle, f"unet gave noise_pred as {given}.*, but the manifest says float32")
