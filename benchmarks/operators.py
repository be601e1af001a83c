"""Profile a denoising step by operator, and compare it with the CPU's peak.

    controlnext-export --model sd15 --precision fp32 --random-weights 0 --output build/sd15-fp32
    python benchmarks/operators.py build/sd15-fp32 --size 256

Runs steps with guidance by ONNX Runtime with its profiler and prints a Markdown table: milliseconds per step
by operator type, its share, and GFLOP/s for convolutions and float32 matrix products. The last line is the
peak for comparison: the product of two large matrices by the same library. Steps take a little longer than
without the profiler. The bundle needs the form for ONNX Runtime (step.onnx); nothing is written to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from controlnext.bench.messages import Work
from controlnext.bench.requests import step_feed
from controlnext.bundle.reader import read_manifest
from controlnext.engines.onnxruntime.int8 import parts_for
from controlnext.families import get_family

RUNS, LARGE, LISTED = 5, 3072, 16
Shape = Sequence[int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--frames", type=int, default=4, help="frames of a clip; of no effect on images")
    parser.add_argument("--runs", type=int, default=RUNS, help="steps that are profiled")
    parser.add_argument("--large", type=int, default=LARGE, help="height and width of the large matrices")
    given = parser.parse_args(arguments)
    events = profile(given.bundle, Work(height=given.size, width=given.size, frames=given.frames), given.runs)
    seconds, counts, work = (
        defaultdict[str, float](float),
        defaultdict[str, int](int),
        defaultdict[str, float](float),
    )
    for event in events:
        name = event["args"]["op_name"]
        seconds[name] += event["dur"] / 1e6 / given.runs
        counts[name] += 1
        work[name] += operations(event) / given.runs
    whole = sum(seconds.values())
    print("| operator | nodes | ms | share | GFLOP/s |\n| --- | --- | --- | --- | --- |")
    for name in sorted(seconds, key=lambda name: -seconds[name])[:LISTED]:
        rate = f"{work[name] / seconds[name] / 1e9:.0f}" if work[name] else ""
        row = (
            name,
            str(counts[name] // given.runs),
            f"{1000 * seconds[name]:.1f}",
            f"{seconds[name] / whole:.1%}",
            rate,
        )
        print(f"| {' | '.join(row)} |")
    print(f"| all | {sum(counts.values()) // given.runs} | {1000 * whole:.1f} | 100.0% | |")
    rate = f"{peak(given.large, given.runs):.0f}"
    print(f"| product of matrices of {given.large} x {given.large} | | | | {rate} |")


def profile(bundle: Path, work: Work, runs: int) -> list[dict[str, Any]]:
    """Return the profiler's events of all operators in ``runs`` steps after a warm-up."""
    manifest = read_manifest(bundle)
    directory = bundle / get_family(manifest.family).denoiser
    feed = dict(step_feed(bundle, work))
    prologue, step, *_ = (directory / name for name in parts_for(manifest.precision))
    if prologue.exists():
        once = onnxruntime.InferenceSession(prologue)
        feed |= zip((value.name for value in once.get_outputs()), run(once, feed), strict=True)
        del once
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(step, options)
        for _ in range(1 + runs):
            run(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return kernels[len(kernels) // (1 + runs) :]


def run(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run ``session`` with the arrays of ``feed`` that it has as inputs."""
    return session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})


def operations(event: Mapping[str, Any]) -> float:
    """Return the floating-point operations of a convolution or float32 matrix product; 0 for other
    operators."""
    arguments = event["args"]
    taken: list[Shape] = [shape for entry in arguments["input_type_shape"] for shape in entry.values()]
    (made,) = arguments["output_type_shape"][:1] or [{}]
    elements = prod(next(iter(made.values()), [0]))
    if arguments["op_name"] == "Conv":
        return 2.0 * elements * prod(taken[1][1:])
    return 2.0 * elements * taken[0][-1] if arguments["op_name"] == "MatMul" else 0.0


def peak(large: int, runs: int) -> float:
    """Return the GFLOP/s of the product of two large matrices."""
    shape = [large, large]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("given", "made")
    )
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    weight = helper.make_tensor("weight", TensorProto.FLOAT, shape, numbers.tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["given", "weight"], ["made"])], "peak", [given], [made], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rates = []
    for _ in range(runs):
        started = time.perf_counter()
        run(session, {"given": numbers})
        rates.append(2 * large**3 / (time.perf_counter() - started) / 1e9)
    return max(rates)


if __name__ == "__main__":
    main()
