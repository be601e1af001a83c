"""Bundles that lie elsewhere: copied once a node, whole or not at all, by the checksum of their manifest."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlnext.bundle.files import MANIFEST, is_full, lost_location, sha256
from controlnext.bundle.format import check_size
from controlnext.bundle.manifest import FileEntry, Manifest
from controlnext.bundle.reader import parse_manifest, read_manifest
from controlnext.bundle.remote_files import RemoteFiles, has_scheme
from controlnext.bundle.renames import put_directory
from controlnext.bundle.scratch import remove_abandoned, scratch_directory
from controlnext.errors import BundleError, InputError, WorkError, blames
from controlnext.types import Progress

log = logging.getLogger(__name__)

CACHE = "CONTROLNEXT_CACHE"
"""The environment variable that says where copies are kept."""
_SCRATCH = "copying"


def is_remote(location: str | Path) -> bool:
    """Return whether a bundle's location is ``scheme://...``, not a path.

    Raises :class:`InputError` for a :class:`~pathlib.Path` made of one, which lost a slash.
    """
    if isinstance(location, Path) and (lost := lost_location(location)):
        raise InputError(
            f"bundle {location} is a pathlib.Path, which cannot hold {lost}; give it as a string",
            argument="bundle",
        )
    return has_scheme(str(location))


def cache_directory() -> Path:
    """Return the directory of copies: ``$CONTROLNEXT_CACHE``, or ``controlnext/bundles`` in the user's
    cache."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # a relative one is to be ignored, says the specification of XDG_CACHE_HOME
    return (base if base.is_absolute() else Path.home() / ".cache") / "controlnext" / "bundles"


@blames("bundle")
def local_copy(location: str | Path, cache: Path | None = None, report: Progress | None = None) -> Path:
    """Return the directory of a bundle on this machine; a path comes back as it is.

    A location ``scheme://...`` of any filesystem that fsspec knows is copied to
    ``<cache>/<sha256 of its manifest>/<last part of the location>``, unless it was copied before: then only
    the manifest is read. A copy is complete and has the checksums of the manifest, or is not there. Processes
    that ask at the same time copy once. Built engines (``engines/``) are not copied.

    Args:
        cache: directory of the copies, by default :func:`cache_directory`.
        report: is told of the share that was copied.

    Raises:
        BundleError: there is no bundle, or a file of it is missing or has another size or checksum.
        InputError: the scheme is unknown, there is no permission, or the cache cannot be written.
        MissingDependencyError: the library for the scheme is not installed.
        WorkError: reading failed, or the disk is full.
    """
    if not is_remote(location):
        return Path(location)
    source = RemoteFiles(str(location))
    content = source.read_manifest()
    manifest = parse_manifest(content, f"{source.title}/{MANIFEST}")
    key = hashlib.sha256(content).hexdigest()
    entry = (cache_directory() if cache is None else cache) / key
    copy = entry / source.name
    if _is_whole(copy, manifest, key):
        remove_abandoned(entry)
        return copy
    with _writing(source, entry.parent), _locked(source, entry):
        # another process may have made it meanwhile
        if not _is_whole(copy, manifest, key):
            _make(copy, source, content, manifest, report)
    return copy


def manifest_checksum(location: str | Path) -> str:
    """Return the SHA-256 of a bundle's manifest, which tells it from every other one.

    Raises as :func:`read_manifest_of`.
    """
    return read_manifest_of(location)[1]


@blames("bundle")
def read_manifest_of(location: str | Path) -> tuple[Manifest, str]:
    """Return a bundle's manifest and the SHA-256 of its file.

    Raises as :func:`local_copy` and :func:`controlnext.bundle.reader.read_manifest`.
    """
    if not is_remote(location):
        return read_manifest(Path(location)), sha256(Path(location) / MANIFEST)
    source = RemoteFiles(str(location))
    content = source.read_manifest()
    manifest = parse_manifest(content, f"{source.title}/{MANIFEST}")
    return manifest, hashlib.sha256(content).hexdigest()


def _is_whole(copy: Path, manifest: Manifest, key: str) -> bool:
    """Return whether a copy has its manifest and the sizes of all files: their checksums were right when it
    was made, and are checked when they are read."""
    if not copy.is_dir():
        return False
    try:
        for name in manifest.files:
            check_size(copy, manifest, name)
        whole = sha256(copy / MANIFEST) == key
    except (BundleError, OSError):
        whole = False
    if not whole:
        log.warning("%s is damaged and will be copied again", copy)
    return whole


@contextmanager
def _locked(source: RemoteFiles, entry: Path) -> Iterator[None]:
    """Let no other process copy into ``entry`` during the block."""
    # only copies need it
    from filelock import FileLock, Timeout

    entry.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that copies %s", source.title)
        held = lock.acquire()
    with held:
        yield


def _make(
    copy: Path, source: RemoteFiles, content: bytes, manifest: Manifest, report: Progress | None
) -> None:
    """Copy the bundle into a directory beside ``copy``, check it, and rename it."""
    with scratch_directory(copy.parent, _SCRATCH) as scratch:
        made = scratch / "made"
        made.mkdir()
        twin = next((other for other in copy.parent.iterdir() if other != copy and _is_copy(other)), None)
        meter = _Meter(source, manifest, report)
        for name, wanted in manifest.files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            if twin is None or not _link(twin / name, made / name, wanted):
                _download(source, name, wanted, made / name, meter)
        (made / MANIFEST).write_bytes(content)
        put_directory(made, copy, replace=True)
    log.info("copied %s to %s", source.title, copy)


def _is_copy(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_dir()


def _link(existing: Path, target: Path, wanted: FileEntry) -> bool:
    """Take a file from the copy of the same bundle under another name; return whether that was possible."""
    try:
        if existing.stat().st_size != wanted.bytes or sha256(existing) != wanted.sha256:
            return False
        target.hardlink_to(existing)
    except OSError:
        return False
    return True


def _download(source: RemoteFiles, name: str, wanted: FileEntry, target: Path, meter: _Meter) -> None:
    """Copy one file; raise :class:`BundleError` if it has another size or checksum than wanted."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in source.chunks(name):
            size += len(chunk)
            if size > wanted.bytes:
                break
            digest.update(chunk)
            file.write(chunk)
            meter.add(len(chunk))
    title = f"{source.title}/{name}"
    if size != wanted.bytes:
        found = f"more than {wanted.bytes}" if size > wanted.bytes else str(size)
        raise BundleError(
            f"{title} has {found} bytes, the manifest says {wanted.bytes}; copy the bundle there again"
        )
    if digest.hexdigest() != wanted.sha256:
        raise BundleError(
            f"{title} is damaged: its sha256 is {digest.hexdigest()}, the manifest says {wanted.sha256};"
            " copy the bundle there again"
        )


class _Meter:
    """Counter of the bytes of a bundle that were copied, which tells ``report`` and logs each tenth."""

    def __init__(self, source: RemoteFiles, manifest: Manifest, report: Progress | None) -> None:
        self._title, self._report = source.title, report
        self._total = sum(entry.bytes for entry in manifest.files.values())
        self._done = self._tenths = 0
        log.info("copying %s: %d files, %.1f MB", self._title, len(manifest.files), self._total / 1e6)

    def add(self, count: int) -> None:
        """Count bytes that were copied."""
        self._done += count
        share = self._done / self._total
        if self._report:
            self._report(f"copying {self._title}", share)
        if int(10 * share) > self._tenths:
            self._tenths = int(10 * share)
            log.info("copying %s: %d %%", self._title, 10 * self._tenths)


@contextmanager
def _writing(source: RemoteFiles, cache: Path) -> Iterator[None]:
    """Turn an error of writing to the cache into one line."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise WorkError(
                f"the disk that holds {cache} is full; {source.title} was not copied; make room, or set"
                f" {CACHE} to a directory on another disk"
            ) from error
        raise InputError(
            f"{source.title} cannot be copied to {cache}: {error.strerror or error}; set {CACHE} to a"
            " directory that can be written"
        ) from error
