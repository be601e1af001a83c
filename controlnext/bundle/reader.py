"""Reading a manifest: the file is complete, its schema is known, and its content fits the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.manifest import SCHEMA, Manifest
from controlnext.bundle.manifest_check import check_manifest
from controlnext.bundle.schema import check_precisions, upgrade
from controlnext.errors import BundleError, blames
from controlnext.families.values import did_you_mean


class _Header(msgspec.Struct):
    schema: int


@blames("bundle")
def read_manifest(bundle: Path) -> Manifest:
    """Read and validate the manifest of the bundle in directory ``bundle``.

    Raises :class:`BundleError` for a manifest that is missing, damaged, of a newer schema, or does not fit
    the registry (:mod:`controlnext.bundle.manifest_check`).
    """
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}; make one with controlnext export")
    return parse_manifest(path.read_bytes(), path)


@blames("bundle")
def parse_manifest(text: bytes, path: str | Path) -> Manifest:
    """Return the manifest that the file at ``path`` contains; raise as :func:`read_manifest`."""
    try:
        content = msgspec.json.decode(text)
        _check_schema(path, msgspec.convert(content, _Header).schema)
        _check_known(path, content)
        manifest = _typed(path, upgrade(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error
    return manifest


def _typed(path: str | Path, content: dict[str, Any]) -> Manifest:
    try:
        check_precisions(content)
        manifest = msgspec.convert(content, Manifest)
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


def _check_known(path: str | Path, content: dict[str, Any]) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(Manifest)]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise BundleError(
            f"{path} has {', '.join(unknown)}, which this version does not know: it was written by a newer"
            f" one, or misspelled (accepted: {', '.join(known)}); update controlnext, or export the bundle"
            f" again{did_you_mean(unknown[0], known)}"
        )
