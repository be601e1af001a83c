"""Exports that targets need, each made in its own process, whose memory is released when it ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from controlnext.bench.messages import Target
from controlnext.bundle.files import MANIFEST, new_file, new_folder
from controlnext.bundle.format import ENGINES, check_size
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, WorkError
from controlnext.families.schema import PREVIEW_VAE
from controlnext.hints import silence_hints
from controlnext.types import Precision

if TYPE_CHECKING:
    from torch import Tensor


_CLIP = re.compile(r"^(embeddings|encoder|final_layer_norm)\.")


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


def _make_single_file(target: Target, _python: Path | None) -> None:
    file = Path(str(target.options["file"]))
    if not file.is_file():
        _in_process(save_single_file, Path(target.origin), file)


def save_single_file(bundle: Path, destination: Path) -> None:
    """Save the bundle's base model as one file in float16 under the original names.

    Raises :class:`WorkError` for a model whose tensors the original joins or turns.
    """
    from safetensors.torch import save_file

    from controlnext.weights import bundle_checkpoint
    from controlnext.weights.shipped import original_layout, original_prefixes

    checkpoint, tensors = bundle_checkpoint(bundle), {}
    family = checkpoint.family
    for name in family.networks.keys() & checkpoint.networks.keys():
        weights, prefixes = checkpoint.networks[name], original_prefixes(family, name)
        layout = original_layout(family, name, weights.config)
        for key, tensor in weights.tensors.items():
            origin = layout(key)
            if origin.take is not None:
                raise WorkError(f"{family.title} is not written as a single file: {key} is joined there")
            prefix = next(p for p, inside in prefixes.items() if origin.name.startswith(inside))
            inside = origin.name.removeprefix(prefixes[prefix])
            if weights.spec and weights.spec.library == "transformers":
                inside = clip_name(inside)
            tensors[prefix + inside] = _of_original(origin.name, tensor.half())
    with new_file(destination) as aside:
        save_file(tensors, aside)


def clip_name(name: str) -> str:
    """Return the name of a tensor of CLIP in original files, with a prefix that transformers 5 dropped."""
    return _CLIP.sub(r"text_model.\1.", name)


def _of_original(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor with the shape of the original, whose VAE has convolutions around its attention."""
    return tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor


def _save_once(bundle: Path, destination: Path) -> None:
    if not destination.is_dir():
        _in_process(save_stock_pipeline, bundle, destination)


def save_stock_pipeline(bundle: Path, destination: Path) -> None:
    """Save the bundle's base model as a diffusers directory, with a file NAME.safetensors per control module,
    and the tiny VAE of previews beside it."""
    from safetensors.torch import save_file
    from transformers.utils.logging import disable_progress_bar

    from controlnext.reference import reference_pipeline
    from controlnext.weights import bundle_checkpoint

    disable_progress_bar()
    checkpoint = bundle_checkpoint(bundle)
    with new_folder(destination) as directory:
        reference = reference_pipeline(checkpoint)
        reference.pipeline.save_pretrained(directory)
        if tiny := reference.modules.get(PREVIEW_VAE):
            tiny.save_pretrained(directory / PREVIEW_VAE)  # type: ignore[operator]
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
    {
        "uncontrolled": _make_uncontrolled,
        "stock": _make_stock_pipeline,
        "optimum": _make_with_optimum,
        "single file": _make_single_file,
    }
)
"""Functions that make the files of a target, by its ``maker``."""


def copy_without_engines(bundle: Path, destination: Path) -> Path:
    """Copy a bundle without its engines, as if it had never been loaded; files are hard links if possible."""

    def copy(source: str, copied: str) -> None:
        try:
            os.link(source, copied)
        except OSError:
            shutil.copy2(source, copied)

    shutil.copytree(bundle, destination, ignore=shutil.ignore_patterns(ENGINES), copy_function=copy)
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
