"""Reading a manifest: the file is complete, its schema is known, and its content fits the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.format import ENGINES
from controlnext.bundle.manifest import SCHEMA, Manifest
from controlnext.bundle.manifest_check import check_manifest, find_family
from controlnext.bundle.names import check_inside
from controlnext.bundle.schema import check_precisions, upgrade
from controlnext.bundle.unknown import without_unknown
from controlnext.errors import BundleError, blames
from controlnext.hub_names import is_repository

LARGEST = 64 << 20
"""The largest manifest in bytes: those of the largest models have a thousandth."""


class _Header(msgspec.Struct):
    schema: int


class _OfFamily(msgspec.Struct):
    family: str


@blames("bundle")
def read_manifest(bundle: Path) -> Manifest:
    """Read and validate the manifest of the bundle in directory ``bundle``.

    Raises :class:`BundleError` for a manifest that is missing, damaged, of a newer schema, or does not fit
    the registry (:mod:`controlnext.bundle.manifest_check`).
    """
    path = bundle / MANIFEST
    try:
        lack, fix = f"it has no {MANIFEST}", "make one with controlnext export"
        if not bundle.exists():
            lack = "there is no such file or directory"
            fix += f", or give hf://{bundle} for one of the hub" if is_repository(str(bundle)) else ""
        there = path.is_file()
    except OSError as error:
        there, lack = False, f"it cannot be looked into: {error.strerror}"
        fix = "give another path"
    if not there:
        raise BundleError(f"{bundle} is not a bundle: {lack}; {fix}")
    for ours in (path, bundle / ENGINES):
        check_inside(bundle, ours)
    if path.stat().st_size > LARGEST:
        raise BundleError(f"{path} is too large for a manifest; export the bundle again")
    return parse_manifest(path.read_bytes(), path)


@blames("bundle")
def parse_manifest(text: bytes, path: str | Path) -> Manifest:
    """Return the manifest that the file at ``path`` contains; raise as :func:`read_manifest`."""
    try:
        content = msgspec.json.decode(text)
        _check_schema(path, msgspec.convert(content, _Header).schema)
        return _typed(path, upgrade(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error


def _typed(path: str | Path, content: dict[str, Any]) -> Manifest:
    try:
        check_precisions(content)
        family = find_family(msgspec.convert(content, _OfFamily).family)
        manifest = msgspec.convert(without_unknown(content, family, path), Manifest)
        check_manifest(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}; export the bundle again") from error
    return manifest


def _check_schema(path: str | Path, schema: int) -> None:
    if schema < 1:
        raise BundleError(f"{path} has schema {schema}; accepted: 1 to {SCHEMA}; export the bundle again")
    if schema > SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}; update controlnext"
        )
