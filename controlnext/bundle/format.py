"""The files of a bundle: their names, and checks against the manifest."""

from __future__ import annotations

from pathlib import Path

from controlnext.bundle.files import MANIFEST, sha256
from controlnext.bundle.manifest import FileEntry, Manifest
from controlnext.bundle.names import check_inside
from controlnext.errors import BundleError

MODEL, DATA = "model.onnx", "model.onnx.data"
"""A graph and its weights, in the graph's directory."""
ENGINES = "engines"
"""The directory of a bundle with built engines and cached graphs, which the manifest does not list."""
PROLOGUE, STEP = "prologue.onnx", "step.onnx"
"""A denoiser's graph in the form that ONNX Runtime runs fastest, with the same weights: the part that is
computed once for each image, if it is separate, and the part that runs at every step."""
SHALLOW, SHALLOW_STEP = "shallow.onnx", "shallow_step.onnx"
"""The shallow part of a denoiser's graph and of its step, for the step cache, with the same weights."""
PARTS = (PROLOGUE, STEP, SHALLOW_STEP)
UINT8_PARTS = ("prologue.uint8.onnx", "step.uint8.onnx", "shallow_step.uint8.onnx")
"""The same for an int8 graph, for processors on which only uint8 x uint8 products are exact."""


def model_file(graph_name: str) -> str:
    """Return the file of a graph, or of the shallow part of one, in the bundle: ``unet/model.onnx``."""
    name, dot, _ = graph_name.partition(".")
    return f"{name}/{SHALLOW if dot else MODEL}"


def list_files(bundle: Path, without: str = "") -> dict[str, FileEntry]:
    """Return the checksum of every file of a bundle except the manifest, by relative path; ``without``: a
    directory whose files are left out too."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    paths = [path for path in paths if not without or bundle / without not in path.parents]
    return {
        path.relative_to(bundle).as_posix(): FileEntry(sha256(path), path.stat().st_size) for path in paths
    }


def check_size(bundle: Path, manifest: Manifest, name: str) -> Path:
    """Check the size of the bundle's file ``name`` and return its path. Raises :class:`BundleError`."""
    if name not in manifest.files:
        raise BundleError(f"{bundle / MANIFEST}: files has no {name}; export the bundle again")
    path, entry = bundle / name, manifest.files[name]
    check_inside(bundle, path)
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again or export it again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {entry.bytes} (sha256 {entry.sha256}): truncated;"
            " copy the bundle again"
        )
    return path


def check_file(bundle: Path, manifest: Manifest, name: str) -> Path:
    """Check size and checksum of the bundle's file ``name``; return its path. Raises :class:`BundleError`."""
    path, entry = check_size(bundle, manifest, name), manifest.files[name]
    found = sha256(path)
    if found != entry.sha256:
        raise BundleError(
            f"{path} is damaged: its sha256 is {found}, the manifest says {entry.sha256};"
            " copy the bundle again"
        )
    return path


def graph_files(manifest: Manifest, graph: str) -> dict[str, FileEntry]:
    """Return the entries of the files of ``graph`` (``"unet"``), by their names in the bundle.

    Those of its shallow part are the same.
    """
    directory = model_file(graph).partition("/")[0]
    return {name: entry for name, entry in manifest.files.items() if name.startswith(f"{directory}/")}


def check_graph(bundle: Path, manifest: Manifest, graph: str) -> Path:
    """Return the directory of ``graph`` after sizes and checksums of all its files were found right.

    Raises :class:`BundleError` for the first that is missing, truncated or damaged.
    """
    for name in graph_files(manifest, graph):
        check_file(bundle, manifest, name)
    return (bundle / model_file(graph)).parent
