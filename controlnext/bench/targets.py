"""The targets of the benchmark: bundles' engines, and PyTorch, diffusers and optimum with the same
weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from controlnext.bench.messages import Option, Target
from controlnext.bundle.files import MANIFEST, sha256
from controlnext.bundle.format import graph_files
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import registry
from controlnext.families import get_family
from controlnext.families.schema import PREVIEW_DECODER

STEPS = ("step", "batch", "size", "frames")
IMAGES = ("image", "first", "memory")
DECODES = ("decode",)
MEASURES = (*STEPS, *IMAGES, *DECODES, "load")
DEFAULT_MEASURES = ("step", "image", "first", "load", "memory")

WITHOUT_CONTROL = "without control"
OFFLOADED = "offloaded"
PREVIEWS = "preview decoder"

_DTYPES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
"""Bytes per weight of the torch dtypes that are measured."""
_COMPILED = ("float32", "bfloat16")
_COPIES = 1.2
"""Memory of an engine per byte of its graph's file: some weights are held in a packed layout as well."""
_CONTROLNET = 1.5
"""Memory of a pipeline with a ControlNet per byte of one without."""


def all_targets(bundles: Sequence[Path], made: Path, device: str, gpu: bool, optimum: bool) -> list[Target]:
    """Return all targets for ``bundles``; the ones that are most often compared come first.

    PyTorch uses the weights of the first bundle. ``made``: directory of exports that targets need. ``gpu``:
    whether ``device`` is a GPU. ``optimum``: whether optimum's exporter is available.
    """
    manifests = {path: read_manifest(path) for path in bundles}
    ours: list[Target] = []
    for path, name in _names(manifests).items():
        ours.append(_engine(path, name, device))
    for path, name in _names(manifests).items():
        ours.append(_uncontrolled(path, name, made, device))
    for path, name in _names(manifests).items():
        ours.append(replace(_engine(path, f"{name} {OFFLOADED}", device, offload=True), measures=IMAGES))
    for path, name in _names(manifests).items():
        ours += _variants(path, name, device, "cuda" if gpu else "cpu")
    for path, name in _names(manifests).items():
        if PREVIEW_DECODER in manifests[path].graphs:
            engine = _engine(path, f"{name} {PREVIEWS}", device, decoder=PREVIEW_DECODER)
            ours.append(replace(engine, measures=DECODES))
    return [*ours, *_theirs(bundles[0], made, device, optimum)]


def _names(manifests: Mapping[Path, Manifest]) -> dict[Path, str]:
    """Name each bundle by its precision, and also by its directory if several have the same precision."""
    precisions = [manifest.precision for manifest in manifests.values()]
    return {
        path: f"engine {manifest.precision}"
        + (f" {path.name}" if precisions.count(manifest.precision) > 1 else "")
        for path, manifest in manifests.items()
    }


def _engine(path: Path, name: str, device: str, **options: Option) -> Target:
    manifest = read_manifest(path)
    denoiser_name = get_family(manifest.family).denoiser
    size = sum(entry.bytes for entry in manifest.files.values())
    denoiser = sum(entry.bytes for entry in graph_files(manifest, denoiser_name).values())
    given: dict[str, Option] = {"device": device, **options}
    return Target(name, "engine", str(path), MEASURES, int(_COPIES * size), int(_COPIES * denoiser), given)


def _uncontrolled(path: Path, name: str, made: Path, device: str) -> Target:
    """Return the target of the same engine, exported without the control."""
    destination = _own_directory(path, made) / "without-control"
    engine = _engine(path, f"{name} {WITHOUT_CONTROL}", device)
    return replace(engine, bundle=str(destination), measures=STEPS, maker="uncontrolled", origin=str(path))


def _variants(path: Path, name: str, device: str, kind: str) -> Iterator[Target]:
    """Yield a target for each backend and variant that can run the denoiser on devices of ``kind``."""
    denoiser = get_family(read_manifest(path).family).denoiser
    for backend in registry.BACKENDS.values():
        ready = backend.has_engine(path, denoiser) and (backend.needs_build or backend.available())
        if kind not in backend.devices or not ready:
            continue
        for title, options in backend.variants(kind).items():
            engine = _engine(path, f"{name}, {title}", device, backend=backend.name, **options)
            yield replace(engine, measures=STEPS)


def _theirs(path: Path, made: Path, device: str, optimum: bool) -> list[Target]:
    """Return the targets that run the same weights in PyTorch, diffusers and optimum."""
    manifest = read_manifest(path)
    family = get_family(manifest.family)
    count, denoiser = _weights(manifest, *manifest.graphs), _weights(manifest, family.denoiser)

    def torch(name: str, dtype: str, measures: tuple[str, ...], **options: Option) -> Target:
        given: dict[str, Option] = {"device": device, "dtype": dtype, **options}
        sizes = count * _DTYPES[dtype], denoiser * _DTYPES[dtype]
        return Target(name, "torch", str(path), measures, *sizes, given)

    def images(name: str, dtype: str) -> Target:
        plain = torch(name, dtype, IMAGES, stock=str(_own_directory(path, made) / "diffusers"))
        return replace(plain, runner="pipeline", maker="stock", origin=str(path))

    eager = [torch(f"torch eager {dtype}", dtype, STEPS) for dtype in _DTYPES]
    eager += [images(f"torch eager {dtype}", dtype) for dtype in _DTYPES]
    alone = torch(f"torch eager float32 {WITHOUT_CONTROL}", "float32", STEPS, controlled=False)
    compiled = [torch(f"torch compiled {dtype}", dtype, STEPS, compiled=True) for dtype in _COMPILED]
    others = [*eager, alone, *compiled]
    if family.controlnet is not None:
        plain = images("diffusers ControlNet float32", "float32")
        weights = int(_CONTROLNET * plain.weights)
        others.append(
            replace(plain, runner="controlnet", measures=(*STEPS, *IMAGES), weights=weights, denoiser=weights)
        )
    if optimum:
        others.append(_optimum(path, made, device, denoiser))
    return others


def _optimum(path: Path, made: Path, device: str, count: int) -> Target:
    output = _own_directory(path, made) / "optimum"
    graph = output / get_family(read_manifest(path).family).denoiser / "model.onnx"
    options: dict[str, Option] = {"device": device, "graph": str(graph)}
    size = int(_COPIES * count * _DTYPES["float32"])
    return Target(
        "optimum float32 without control",
        "graph",
        str(path),
        STEPS,
        size,
        size,
        options,
        maker="optimum",
        origin=str(path),
    )


def _own_directory(path: Path, made: Path) -> Path:
    """Return the directory of exports from the bundle ``path``; a new manifest gets a new directory."""
    return made / "made" / f"{path.name}-{sha256(path / MANIFEST)[:8]}"


def _weights(manifest: Manifest, *graph_names: str) -> int:
    """Estimate the number of weights of the graphs ``graph_names``."""
    total = 0.0
    for name, entry in manifest.files.items():
        graph_name = name.partition("/")[0]
        if graph_name in graph_names:
            total += entry.bytes / manifest.graphs[graph_name].precision.weights.itemsize
    return int(total)
