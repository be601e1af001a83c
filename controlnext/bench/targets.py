"""The targets of the benchmark: bundles' engines, and what others make of the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from controlnext.bench.choices import (
    COPIES,
    DECODES,
    IMAGES,
    MEASURES,
    OFFLOADED,
    PREVIEWS,
    STEPS,
    WITHOUT_CONTROL,
    Surroundings,
    changed,
    uncontrolled_bundle,
)
from controlnext.bench.messages import Option, Target
from controlnext.bench.others import their_targets
from controlnext.bundle.format import graph_files
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import registry
from controlnext.engines.measured import faster_backend
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.families import get_family
from controlnext.families.schema import PREVIEW_DECODER


def all_targets(bundles: Sequence[Path], around: Surroundings) -> list[Target]:
    """Return all targets for ``bundles``; the ones that are most often compared come first.

    PyTorch uses the weights of the first bundle.
    """
    manifests = {path: read_manifest(path) for path in bundles}
    names, device = _names(manifests), around.device
    ours = [_engine(path, name, device) for path, name in names.items()]
    for path, name in names.items():
        ours += changed(_engine(path, name, device), manifests[path], around.less)
    for path, name in names.items():
        ours.append(_uncontrolled(path, name, around.made, device))
    for path, name in names.items():
        ours.append(replace(_engine(path, f"{name} {OFFLOADED}", device, offload=True), measures=IMAGES))
    for path, name in names.items():
        for variant in _variants(path, name, device, "cuda" if around.gpu else "cpu"):
            ours += [variant, *changed(variant, manifests[path], around.less)]
    for path, name in names.items():
        if PREVIEW_DECODER in manifests[path].graphs:
            engine = _engine(path, f"{name} {PREVIEWS}", device, decoder=PREVIEW_DECODER)
            ours.append(replace(engine, measures=DECODES))
    return [*ours, *their_targets(bundles[0], around)]


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
    return Target(name, "engine", str(path), MEASURES, int(COPIES * size), int(COPIES * denoiser), given)


def _uncontrolled(path: Path, name: str, made: Path, device: str) -> Target:
    """Return the target of the same engine, exported without the control."""
    engine, destination = _engine(path, f"{name} {WITHOUT_CONTROL}", device), uncontrolled_bundle(path, made)
    return replace(engine, bundle=str(destination), measures=STEPS, maker="uncontrolled", origin=str(path))


def _variants(path: Path, name: str, device: str, kind: str) -> Iterator[Target]:
    """Yield a target for each backend and variant that can run the denoiser on devices of ``kind``.

    On the CPU without the backend that ``auto`` takes, which is a target already.
    """
    manifest = read_manifest(path)
    denoiser = get_family(manifest.family).denoiser
    taken = faster_backend(manifest.graphs[denoiser].precision) or OrtBackend
    for backend in registry.BACKENDS.values():
        ready = backend.has_engine(path, denoiser) and (backend.needs_build or backend.available())
        if kind not in backend.devices or not ready or (kind == "cpu" and backend is taken):
            continue
        for title, options in backend.variants(kind).items():
            engine = _engine(path, f"{name}, {title}", device, backend=backend.name, **options)
            yield replace(engine, measures=(*STEPS, *IMAGES))
