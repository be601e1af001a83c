"""Exports that targets need, each made in its own process, whose memory is released when it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from controlnext.bench.messages import Target
from controlnext.bundle.files import MANIFEST, new_folder
from controlnext.bundle.format import check_size
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, WorkError
from controlnext.hints import silence_hints
from controlnext.types import Precision


def export_random(model: str, variant: str, seed: int, precision: str, bundles: Path) -> Path:
    """Export a full-size model with random weights into the directory ``bundles``, unless it is there
    already.

    Returns the bundle's path. Raises :class:`~controlnext.errors.WorkError` with the export's message if it
    fails.
    """
    bundle = bundles / f"{model}-{variant}-seed{seed}-{precision}"
    if not is_complete(bundle):
        command = [sys.executable, "-m", "controlnext", "export", "--json", "--force", "--model", model]
        command += ["--variant", variant, "--random-weights", str(seed), "--precision", precision]
        _call([*command, "--output", str(bundle)])
    return bundle


def is_complete(bundle: Path) -> bool:
    """Tell whether ``bundle`` has a manifest and all its files at their sizes."""
    if not (bundle / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(bundle)
        for name in manifest.files:
            check_size(bundle, manifest, name)
    except BundleError:
        return False
    return True


def prepare(target: Target, python: Path | None) -> None:
    """Make the files of ``target`` unless they exist. ``python``: an interpreter with optimum's exporter."""
    if target.maker:
        MAKERS[target.maker](target, python)


def _make_uncontrolled(target: Target, _python: Path | None) -> None:
    destination = Path(target.bundle)
    if not is_complete(destination):
        _in_process(export_uncontrolled, Path(target.origin), destination)


def export_uncontrolled(origin: Path, destination: Path) -> None:
    """Export the denoiser of the bundle ``origin`` without its controls to the bundle ``destination``, which
    has that one graph, with the same weights and precision."""
    from controlnext.export import export_bundle
    from controlnext.weights import bundle_checkpoint

    manifest, checkpoint = read_manifest(origin), bundle_checkpoint(origin)
    family, controls = checkpoint.family, [n for n, w in checkpoint.networks.items() if w.spec is None]
    graph = manifest.graphs[family.denoiser]
    quantization = graph.quantization
    if quantization is not None:
        layers = {n: s for n, s in quantization.layers.items() if n.partition(".")[0] not in controls}
        quantization = msgspec.structs.replace(quantization, layers=layers)
    denoiser = tuple(spec for spec in family.graphs if spec.name == family.denoiser)
    export_bundle(
        replace(checkpoint.without_controls(), family=replace(family, graphs=denoiser)),
        manifest.precision,
        destination,
        compute=graph.compute or Precision.FP32,
        calibrated=quantization,
        force=True,
    )


def _make_with_optimum(target: Target, python: Path | None) -> None:
    graph = Path(str(target.options["graph"]))
    if graph.is_file():
        return
    output = graph.parent.parent
    stock = output.parent / "diffusers"
    _save_once(Path(target.origin), stock)
    exporter = [str(python), "-m", "optimum.exporters.onnx", "--task", "text-to-image"]
    _call([*exporter, "--model", str(stock), str(output)])


def _make_stock_pipeline(target: Target, _python: Path | None) -> None:
    _save_once(Path(target.origin), Path(str(target.options["stock"])))


def _save_once(bundle: Path, destination: Path) -> None:
    if not destination.is_dir():
        _in_process(save_stock_pipeline, bundle, destination)


def save_stock_pipeline(bundle: Path, destination: Path) -> None:
    """Save the bundle's base model as a diffusers directory, with a file NAME.safetensors per control
    module."""
    from safetensors.torch import save_file
    from transformers.utils.logging import disable_progress_bar

    from controlnext.reference import reference_pipeline
    from controlnext.weights import bundle_checkpoint

    disable_progress_bar()
    checkpoint = bundle_checkpoint(bundle)
    with new_folder(destination) as directory:
        reference_pipeline(checkpoint).pipeline.save_pretrained(directory)
        _rename_tokenizers(directory)
        for name, weights in checkpoint.networks.items():
            if weights.spec is None:
                save_file(dict(weights.tensors), directory / f"{name}.safetensors")


def _rename_tokenizers(directory: Path) -> None:
    """Replace the tokenizer class of transformers 5 by the name that optimum's transformers has too."""
    for file in (directory / "model_index.json", *directory.glob("tokenizer*/tokenizer_config.json")):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"), encoding="utf-8")


MAKERS: Mapping[str, Callable[[Target, Path | None], None]] = MappingProxyType(
    {"uncontrolled": _make_uncontrolled, "stock": _make_stock_pipeline, "optimum": _make_with_optimum}
)
"""Functions that make the files of a target, by its ``maker``."""


def copy_without_engines(bundle: Path, destination: Path) -> Path:
    """Copy a bundle without its engines, as if it had never been loaded; files are hard links if possible."""

    def copy(source: str, copied: str) -> None:
        try:
            os.link(source, copied)
        except OSError:
            shutil.copy2(source, copied)

    shutil.copytree(bundle, destination, ignore=shutil.ignore_patterns("engines"), copy_function=copy)
    return destination


def _in_process(function: Callable[..., None], *arguments: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=silence_hints) as pool:
        pool.submit(function, *arguments).result()


def _call(command: list[str]) -> None:
    """Run a command; raise :class:`WorkError` with the last line of its stderr if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorkError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        program = " ".join(command[2:4])
        raise WorkError(f"{program} failed: {lines[-1].removeprefix('controlnext: error: ')}")
