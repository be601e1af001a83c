"""``controlnext inspect``: show the contents of a bundle after verifying every checksum, or what an image was
made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controlnext.bundle.format import check_file, read_json
from controlnext.bundle.manifest import Graph, ImagePrompt, Manifest, TensorEntry
from controlnext.bundle.reader import read_manifest
from controlnext.bundle.remote import is_remote
from controlnext.cli import options
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.console import print_json, print_table, progress
from controlnext.cli.tables import print_parity
from controlnext.engines import registry
from controlnext.engines.measured import faster_backend
from controlnext.engines.onnxruntime.int8 import known_int8_form
from controlnext.errors import InputError, visible
from controlnext.image_input import IMAGE_SUFFIXES
from controlnext.image_prompts import KINDS
from controlnext.runtime.media.recipe import read_chunks

SCHEDULER = Path("scheduler", "scheduler_config.json")
Subject = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE_OR_IMAGE",
        help="Path to the bundle directory, or where it lies: s3://..., gs://..., hf://owner/name; or path to"
        " a PNG image.",
        show_default=False,
    ),
]


def inspect(bundle: Subject, as_json: options.Json = False) -> None:
    """Show the contents of a bundle and verify its checksums, or show what an image was made with."""
    if not is_remote(bundle) and Path(bundle).suffix.lower() in IMAGE_SUFFIXES and Path(bundle).is_file():
        _inspect_image(Path(bundle), as_json=as_json)
        return
    directory = fetch_bundle(bundle, quiet=as_json)
    manifest = read_manifest(directory)
    with progress(quiet=as_json) as report:
        for done, name in enumerate(manifest.files, start=1):
            check_file(directory, manifest, name)
            report("checksums", done / len(manifest.files))
    if as_json:
        here = {"int8_form": known_int8_form()} if manifest.precision.integer_products else {}
        print_json({"bundle": str(bundle), **msgspec.to_builtins(manifest), **here})
    else:
        _print(directory, manifest)
        print_table("Backends", ("backend", "installed", "graphs"), list(_backends(directory, manifest)))


def _inspect_image(path: Path, *, as_json: bool) -> None:
    """Print what a PNG image says that it was made with."""
    recipe, parameters = read_chunks(path)
    if recipe is None and parameters is None:
        raise InputError(
            f"{path} has no arguments in it; give a bundle, or a PNG image that was written with them"
        )
    if as_json:
        print_json({"image": str(path), "recipe": recipe and recipe.as_json(), "parameters": parameters})
        return
    # a text of unknown origin
    for line in (parameters or "").splitlines():
        print(visible(line))
    if recipe is None:
        print("It was not made by this package, or its own text was taken out.")
        return
    made = recipe.bundle
    print(f"Image {recipe.number} of {recipe.count} of one call, by controlnext {visible(recipe.version)}.")
    facts = {
        "bundle": f"{made.name}, {made.family}, variant {made.variant}, {made.precision}",
        "manifest": made.manifest_sha256,
        "backend": recipe.backend,
        **recipe.arguments,
        **({"preprocess": recipe.preprocess} if recipe.preprocess else {}),
    }
    print_table("Made with", ("", ""), [(name, str(value)) for name, value in facts.items()])
    files = [(name, f.name, f.sha256) for name, several in recipe.files.items() for f in several]
    print_table("Files", ("for", "file", "sha256"), files)


def _print(directory: Path, manifest: Manifest) -> None:
    print(f"{manifest.family}, variant {manifest.variant}, {manifest.precision}")
    if manifest.precision.integer_products and (form := known_int8_form()):
        print(f"On this processor ONNX Runtime multiplies int8 as {form}.")
    if rank := max((graph.lora.rank for graph in manifest.graphs.values() if graph.lora), default=0):
        print(f"It has room for LoRAs of up to rank {rank} together.")
    if manifest.clip_skip:
        print(f"Prompts skip the last {manifest.clip_skip} layers of the text encoders (clip skip).")
    for number, adapter in enumerate(_adapters(manifest), start=1):
        title = KINDS[adapter.kind].title
        print(f"Image prompt {number}: {title}, which makes {adapter.tokens} tokens of an image.")
    if faster := faster_backend(manifest.precision):
        print(f"On this processor auto runs {manifest.precision} graphs by {faster.name}.")
    print_table(
        "Graphs", ("graph", "precision", "inputs", "outputs"), [_graph(*g) for g in manifest.graphs.items()]
    )
    print_table(
        "Files",
        ("file", "bytes", "sha256"),
        [(n, f"{f.bytes:,}", f.sha256[:16]) for n, f in manifest.files.items()],
    )
    print_table(
        "Weights",
        ("for", "from", "sha256", ""),
        [(s.role, s.name, s.sha256[:16], s.detail) for s in manifest.sources],
    )
    if manifest.scheduler:
        values = read_json(directory / SCHEDULER)
        print_table(
            "Scheduler",
            ("setting", "value", "from", ""),
            [
                (key, str(values.get(key, "")), setting.origin, setting.name)
                for key, setting in sorted(manifest.scheduler.items())
            ],
        )
    print_table("Made with", ("tool", "version"), list(manifest.tools.items()))
    if manifest.parity:
        print_parity(manifest.parity)
    else:
        print("The export was not compared with PyTorch; controlnext verify does that.")


def _adapters(manifest: Manifest) -> list[ImagePrompt]:
    return [adapter for graph in manifest.graphs.values() for adapter in graph.adapters]


def _backends(bundle: Path, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yield each backend with the graphs that it has engines of, whether or not they suit this machine."""
    for backend_name, backend in registry.BACKENDS.items():
        graphs = [name for name in manifest.graphs if backend.has_engine(bundle, name)]
        installed = "yes" if backend.available() else f"no: controlnext[{backend.extra}]"
        yield backend_name, installed, ", ".join(graphs) or "none; controlnext build makes engines"


def _graph(name: str, graph: Graph) -> tuple[str, str, str, str]:
    return name, graph.precision, _tensors(graph.inputs), _tensors(graph.outputs)


def _tensors(tensors: list[TensorEntry]) -> str:
    return "\n".join(f"{t.name} {t.dtype} ({', '.join(str(dim) for dim in t.shape)})" for t in tensors)
