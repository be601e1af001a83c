"""The bundle's manifest, ``controlnext.json``: what is in the folder and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from controlnext.bundle.files import MANIFEST, sha256
from controlnext.bundle.manifest_check import check_manifest
from controlnext.errors import BundleError
from controlnext.families.values import did_you_mean
from controlnext.tensor_spec import TensorSpec

SCHEMA = 1

MODEL, DATA = "model.onnx", "model.onnx.data"
"""A graph and its weights, in the graph's folder."""
PROLOGUE, STEP = "prologue.onnx", "step.onnx"
"""A denoiser's graph as ONNX Runtime runs it best, of the same weights: what is computed once a picture,
where that is kept apart, and the rest."""
PARTS = (PROLOGUE, STEP)
UINT8_PARTS = ("prologue.uint8.onnx", "step.uint8.onnx")
"""The same of an int8 graph for processors that multiply uint8 by uint8 alone rightly."""


class FileEntry(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class TensorEntry(msgspec.Struct, frozen=True):
    """A :class:`~controlnext.tensor_spec.TensorSpec` with its sizes resolved."""

    name: str
    dtype: str
    shape: list[int | str]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorEntry:
        return cls(spec.name, spec.dtype, list(spec.shape))

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class LayerScales(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps of the symmetric int8 grids of a layer's activations: of its input, and of its output where that
    is rounded too. ``normalized``: both are divided by the mean magnitude of the input's row first."""

    input: float
    output: float | None = None
    normalized: bool = False


class Int8(msgspec.Struct, frozen=True):
    """What was decided about a graph's layers, by node name, and what it was decided on.

    ``left_out``: layers that stay as they are, with the relative error of the graph's output that each alone
    would cause in int8. ``expected_error``: the same of all others together. ``float_share``: the share of
    the layers' multiplications that is left out. ``steps``: how many denoising steps were looked at.
    """

    layers: dict[str, LayerScales]
    left_out: dict[str, float]
    expected_error: float
    float_share: float
    steps: int


class Graph(msgspec.Struct, frozen=True):
    """One ONNX graph of the bundle (``<folder>/model.onnx``) and the configuration of its network.

    ``precision`` is "fp32", "fp16" or "int8"; ``compute`` the arithmetic of what an int8 graph leaves out.
    """

    network: str
    precision: str
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    compute: str = ""
    int8: Int8 | None = None


class Source(msgspec.Struct, frozen=True):
    """Where weights came from: a file's or folder's own name (never its path) or a hub id, and a digest."""

    role: str
    name: str
    sha256: str = ""
    detail: str = ""


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a setting of the scheduler came from: the ``base``'s own file, the family's ``shipped`` defaults
    (of single files), a ``marker`` in the checkpoint or its metadata, the stock ``pipeline`` that sets it in
    every base, or an ``option`` of the export; ``name``: of the base, the marker or the pipeline."""

    origin: Literal["base", "shipped", "marker", "pipeline", "option"]
    name: str = ""


class ParityRow(msgspec.Struct, frozen=True):
    """One measured difference between the engine and the PyTorch reference."""

    name: str
    metric: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``configs``: the configuration of every network by name, as in the diffusers checkpoint.
    ``options``: pipeline options of the checkpoint (``force_zeros_for_empty_prompt``).
    ``parity``: what the export measured; empty when it was told not to. ``scheduler``: where each setting of
    ``scheduler/scheduler_config.json`` came from; empty in bundles of earlier releases."""

    schema: int
    family: str
    variant: str
    precision: str
    graphs: dict[str, Graph]
    configs: dict[str, dict[str, Any]]
    options: dict[str, Any]
    sources: list[Source]
    tools: dict[str, str]
    files: dict[str, FileEntry]
    parity: list[ParityRow] = []
    scheduler: dict[str, Setting] = {}


class _Header(msgspec.Struct):
    schema: int


def read_manifest(bundle: Path) -> Manifest:
    """Read and validate the manifest of the bundle in folder ``bundle``.

    Raises :class:`BundleError` where there is none, where it is damaged, of a newer schema, or does not fit
    the registry (:mod:`controlnext.bundle.manifest_check`).
    """
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(f"{bundle} is no bundle: it has no {MANIFEST}; make one with controlnext export")
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content, type=_Header).schema
        if schema > SCHEMA:
            raise BundleError(
                f"{path} has schema {schema}, this version reads up to {SCHEMA}; update controlnext"
            )
        _check_known(path, msgspec.json.decode(content))
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error
    try:
        check_manifest(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}; export the bundle again") from error
    return manifest


def _check_known(path: Path, content: dict[str, Any]) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(Manifest)]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise BundleError(
            f"{path} has {', '.join(unknown)}, which this version does not know: it was written by a newer"
            f" one, or misspelled (known: {', '.join(known)}); update controlnext, or export the bundle again"
            f"{did_you_mean(unknown[0], known)}"
        )


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest as indented JSON with sorted keys: equal manifests give equal files."""
    content = msgspec.json.encode(manifest, order="sorted")
    (bundle / MANIFEST).write_bytes(msgspec.json.format(content, indent=2) + b"\n")


def list_files(bundle: Path, without: str = "") -> dict[str, FileEntry]:
    """Checksums of every file of a bundle but the manifest itself, by relative path; ``without``: nor those
    of the folder of that name."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    paths = [path for path in paths if not without or bundle / without not in path.parents]
    return {
        path.relative_to(bundle).as_posix(): FileEntry(sha256(path), path.stat().st_size) for path in paths
    }


def check_size(bundle: Path, manifest: Manifest, name: str) -> Path:
    """The path of the bundle's file ``name``, after its size was found right."""
    if name not in manifest.files:
        raise BundleError(f"{bundle / MANIFEST}: files has no {name}; export the bundle again")
    path, entry = bundle / name, manifest.files[name]
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
    """The path of the bundle's file ``name``, after its size and checksum were found right."""
    path, entry = check_size(bundle, manifest, name), manifest.files[name]
    found = sha256(path)
    if found != entry.sha256:
        raise BundleError(
            f"{path} is damaged: its sha256 is {found}, the manifest says {entry.sha256};"
            " copy the bundle again"
        )
    return path
