"""How long a denoiser takes on a GPU, by every backend that is there and by PyTorch.

    python benchmarks/gpu.py BUNDLE [--height 1024 --width 1024 --rows 2 --runs 20]

Prints a Markdown table: the median in milliseconds of one run of the denoiser, from the changing inputs in
main memory to its noise in main memory, and how many times faster than PyTorch's float16, eager, that is.
PyTorch computes with the bundle's own weights. Engines that are missing are built first, for this size.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from controlnext.commands.trial import graph_feeds
from controlnext.engines import Backend
from controlnext.engines.onnxruntime import OrtBackend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import find_gpu
from controlnext.engines.tensorrt.run import TrtBackend
from controlnext.errors import ControlNeXtError
from controlnext.manifest import Manifest, read_manifest
from controlnext.registry import get_family

Feed = dict[str, np.ndarray]
CHANGING = ("sample", "timestep")
WARM_UP = 5
GPU = "cuda:0"


def main() -> None:
    """Print a row for every way of running the denoiser; where one does not work, why."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=2, help="of the batch: 2 for one picture with guidance")
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    gpu, manifest = find_gpu(), read_manifest(given.bundle)
    if gpu is None:
        sys.exit("this needs an NVIDIA GPU and its driver")
    size = f"{given.width} x {given.height}, {given.rows} rows"
    print(f"{manifest.variant}, {manifest.precision}, {size}, {gpu.name}")
    print("\n| run by | ms | times as fast |\n| --- | --- | --- |")
    feed = make_feed(given.bundle, manifest, given)
    first = None
    for name, make in [*pytorch(given.bundle, feed), *backends(given, manifest, feed)]:
        try:
            milliseconds = median(make(), given.runs)
        except (ControlNeXtError, RuntimeError, ImportError) as error:
            print(f"| {name} | {str(error).splitlines()[0]} | |", flush=True)
            continue
        finally:
            gc.collect()
        first = first or milliseconds
        print(f"| {name} | {milliseconds:.2f} | {first / milliseconds:.2f} |", flush=True)


def make_feed(bundle: Path, manifest: Manifest, given: argparse.Namespace) -> Feed:
    """Inputs of the denoiser at the size asked for, from the seeded ones of ``verify``."""
    denoiser = get_family(manifest.family).denoiser
    fixed = {"batch": given.rows, "height": given.height // 8, "width": given.width // 8}
    shapes = {}
    for tensor in manifest.graphs[denoiser].inputs:
        symbols = dict.fromkeys(tensor.spec().symbols(), 1)
        shape = tensor.spec().shape_at({**symbols, "sequence": 77, "frames": 14, **fixed})
        shapes[tensor.name] = [list(shape)] * 3
    feed = graph_feeds(bundle, manifest, [{denoiser: shapes}])[denoiser][0]
    return {name: array[:1] if name.startswith("control_image") else array for name, array in feed.items()}


def median(run: Callable[[], Any], count: int) -> float:
    """Milliseconds of a run, after some that are not counted."""
    seconds = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[WARM_UP:])


def pytorch(bundle: Path, feed: Feed) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """PyTorch in float16, as it is and compiled."""
    for compiled in (False, True):
        name = "PyTorch float16, compiled" if compiled else "PyTorch float16, eager"
        yield name, lambda compiled=compiled: pytorch_run(bundle, feed, compiled)


def pytorch_run(bundle: Path, feed: Feed, compiled: bool) -> Callable[[], Any]:
    import torch

    from controlnext.export.networks import wrap
    from controlnext.injection import CrossNormalization
    from controlnext.reference import reference_pipeline
    from controlnext.weights import bundle_checkpoint

    checkpoint = bundle_checkpoint(bundle)
    reference = reference_pipeline(checkpoint)
    (spec,) = (graph for graph in checkpoint.graphs if graph.folder == checkpoint.family.denoiser)
    normalization = CrossNormalization(checkpoint.variant.injection)
    module: Any = wrap(spec, reference.modules[spec.network], reference.controls, normalization)
    module = module.to(GPU, torch.float16).eval()
    if compiled:
        module = torch.compile(module, mode="max-autotune")
    stay = {name: torch.from_numpy(array).to(GPU, torch.float16) for name, array in feed.items()}

    def run() -> np.ndarray:
        with torch.inference_mode():
            stay.update({n: torch.from_numpy(feed[n]).to(GPU, torch.float16) for n in CHANGING})
            noise: np.ndarray = module(*(stay[tensor.name] for tensor in spec.inputs)).float().cpu().numpy()
        return noise

    return run


def backends(
    given: argparse.Namespace, manifest: Manifest, feed: Feed
) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """Every way in which the bundle's denoiser can run on the GPU."""
    for provider in ("cuda", "tensorrt", "tensorrt-rtx"):
        backend = f"ONNX Runtime, {provider}"
        yield backend, lambda p=provider: engine_run(given, manifest, feed, lambda: OrtBackend(GPU, p))
    for name, flavor in FLAVORS.items():
        for graphs in (False, True):
            title = f"{flavor.title}, {'CUDA graph' if graphs else 'no CUDA graph'}"
            yield title, lambda n=name, g=graphs: built_run(given, manifest, feed, n, g)


def built_run(
    given: argparse.Namespace, manifest: Manifest, feed: Feed, name: str, graphs: bool
) -> Callable[[], Any]:
    FLAVORS[name].library()
    sizes = {"height": given.height, "width": given.width, "batch": (given.rows + 1) // 2}
    command = [sys.executable, "-m", "controlnext", "build", str(given.bundle), "--json", "--backend", name]
    command += ["--graph", get_family(manifest.family).denoiser]
    command += [f"--{option}={size}" for option, size in sizes.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return engine_run(given, manifest, feed, lambda: TrtBackend(name, GPU, graphs))


def engine_run(
    given: argparse.Namespace, manifest: Manifest, feed: Feed, make: Callable[[], Backend]
) -> Callable[[], Any]:
    engine = make().open(given.bundle, manifest, get_family(manifest.family).denoiser)
    bound = engine.bind({name: array for name, array in feed.items() if name not in CHANGING})
    changing = {name: feed[name] for name in CHANGING}
    return lambda: bound.run(changing)


if __name__ == "__main__":
    main()
