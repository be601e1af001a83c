"""Small ONNX files in place of the models of preprocessors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DETECTOR_SIZE, ESTIMATOR_SIZE = (64, 64), (64, 48)
CELLS = 64 + 16 + 4
"""Of the detector: those of the strides 8, 16 and 32."""
KEYPOINTS = 133


def write_map_model(
    path: Path, factors: Sequence[float] = (1.0,), size: tuple[Any, Any] = ("height", "width")
) -> Path:
    """Write a model whose outputs (1, height, width) are the mean of the channels, times each factor."""
    outputs = [f"map_{number}" for number in range(len(factors))]
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0)]
    values: dict[str, np.ndarray] = {"axes": np.array([1], np.int64)}
    for name, factor in zip(outputs, factors, strict=True):
        values[f"{name}_factor"] = np.array(factor, np.float32)
        nodes.append(helper.make_node("Mul", ["mean", f"{name}_factor"], [name]))
    return _write(path, nodes, values, size, outputs)


def write_detector(path: Path, boxes: Mapping[int, tuple[float, ...]], classes: int = 3) -> Path:
    """Write a YOLOX detector that finds the same ``boxes`` in every image: by the number of their cell (the
    first 64 are 8 pixels wide) x, y, width and height in pixels, and the scores of the classes."""
    raw = np.zeros((1, CELLS, 5 + classes), np.float32)
    for cell, (x, y, width, height, *scores) in boxes.items():
        at = np.array([x, y]) / 8 - (cell % 8, cell // 8)
        raw[0, cell] = [*at, *np.log(np.array([width, height]) / 8), 1.0, *scores]
    return write_constants(path, {"output": raw}, DETECTOR_SIZE)


def write_estimator(path: Path, places: np.ndarray, scores: np.ndarray) -> Path:
    """Write an estimator that finds the keypoints of every crop at the same ``places`` (133, 2), in halves of
    a pixel, with ``scores`` (133,)."""
    height, width = ESTIMATOR_SIZE
    bins = {"simcc_x": np.zeros((1, KEYPOINTS, 2 * width)), "simcc_y": np.zeros((1, KEYPOINTS, 2 * height))}
    for axis, values in enumerate(bins.values()):
        values[0, np.arange(KEYPOINTS), (2 * places[:, axis]).astype(int)] = scores
    return write_constants(path, bins, ESTIMATOR_SIZE)


def write_constants(
    path: Path, outputs: Mapping[str, np.ndarray], size: tuple[Any, Any], channels: int = 3
) -> Path:
    """Write a model that gives the same ``outputs`` for every image of ``size``."""
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in outputs]
    values = {f"{name}_value": value.astype(np.float32) for name, value in outputs.items()}
    return _write(path, nodes, values, size, list(outputs), channels)


def _write(
    path: Path,
    nodes: Sequence[Any],
    values: Mapping[str, np.ndarray],
    size: tuple[Any, Any],
    outputs: Sequence[str],
    channels: int = 3,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, channels, *size))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path
