"""The store of built engines, which returns one only if it fits the bundle and the machine exactly.

An engine is in ``<bundle>/engines/<backend>-<hardware>/<graph>/``: the library's file, an entry that
describes it, and the checksums of both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from controlnext.bundle.format import DATA, ENGINES, model_file
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.names import check_inside
from controlnext.bundle.scratch import remove_abandoned
from controlnext.engines import artifact_cache
from controlnext.errors import BundleError, EngineError, WorkError
from controlnext.regular import read_small

ENGINE = "model.engine"
ENTRY = "entry.json"
PORTABLE = "portable"
"""Hardware of an engine for every GPU that its library builds for by default."""

_UNREADABLE = (OSError, ValueError, msgspec.DecodeError, RecursionError, BundleError)
"""Errors of reading a damaged entry; msgspec's is no ValueError before 0.21."""

Profile = dict[str, list[list[int]]]
"""The smallest, the usual and the largest shape of each input."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that an engine depends on.

    ``graph`` and ``weights``: sha256 of the graph's file and of the file of its weights. ``hardware``: the
    GPUs that it was built for, :data:`PORTABLE` or their architectures ("sm86+sm89"). ``options``: the
    builder's.
    """

    graph: str
    weights: str
    precision: str
    backend: str
    version: str
    hardware: str
    profile: Profile
    options: dict[str, int | bool | None]


class Entry(msgspec.Struct, frozen=True):
    """The description of an engine.

    ``seconds``: the duration of the build; ``ranges``: the sizes that it is for by name
    (``"512:1024:1280"``), empty if an earlier version built it.
    """

    key: Key
    seconds: float
    ranges: dict[str, str] = {}

    def build(self) -> dict[str, object]:
        """Return by name the arguments that build such an engine again."""
        named = re.fullmatch(r"sm\d+(\+sm\d+)*", self.key.hardware)
        targets = self.key.hardware.split("+") if named else None
        options = {**self.key.options, "targets": targets}
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        return {"backend": self.key.backend, **self.ranges, **given}


@dataclass(frozen=True)
class StoredEngine:
    """An engine whose checksum is right."""

    path: Path
    entry: Entry


@dataclass(frozen=True)
class EngineRequirements:
    """The requirements for an engine: a library of this version, and hardware that ``suits`` accepts.

    ``hardware`` is the name of this machine's in messages.
    """

    backend: str
    version: str
    hardware: str
    suits: Callable[[str], bool]


def graph_key(manifest: Manifest, graph_name: str) -> dict[str, str]:
    """Return the parts of a :class:`Key` that the bundle defines: ``graph``, ``weights``, ``precision``."""
    if graph_name not in manifest.parts:
        raise BundleError(f"the bundle has no graph {graph_name}; it has {', '.join(manifest.parts)}")
    file = model_file(graph_name)
    sums = {name: entry.sha256 for name, entry in manifest.files.items()}
    return {
        "graph": sums[file],
        "weights": sums.get(f"{file.partition('/')[0]}/{DATA}", ""),
        "precision": manifest.graph(graph_name).precision,
    }


def engine_directory(bundle: Path, backend: str, hardware: str, graph_name: str) -> Path:
    """Return the directory of the engine of the graph ``graph_name``."""
    return bundle / ENGINES / f"{backend}-{hardware}" / graph_name


def find_engine(
    bundle: Path, manifest: Manifest, graph_name: str, wanted: EngineRequirements
) -> StoredEngine:
    """Return the engine of the graph ``graph_name``; one for few GPUs is preferred to one for many.

    Raises :class:`~controlnext.errors.EngineError` if there is none, or if it is damaged or was built from or
    for something else. The message names the differences and the arguments that build the right one.
    """
    needed = {**graph_key(manifest, graph_name), "backend": wanted.backend, "version": wanted.version}
    entries = _entries(bundle, graph_name, wanted.backend)
    if not entries:
        problem = f"{bundle} has no {wanted.backend} engine of {graph_name}"
        raise EngineError(problem, bundle, {"backend": wanted.backend}, argument="backend")
    suiting = {place: entry for place, entry in entries.items() if wanted.suits(entry.key.hardware)}
    for place, entry in suiting.items():
        if not differences(entry.key, needed):
            return _undamaged(bundle, place, entry)
    place, entry = next(iter((suiting or entries).items()))
    wrong = differences(entry.key, needed)
    if not suiting:
        wrong.insert(0, f"hardware is {entry.key.hardware}, wanted {wanted.hardware}")
    # an engine for other hardware is kept: it is right on that hardware
    build = {**entry.build(), "backend": wanted.backend} if suiting else {"backend": wanted.backend}
    raise EngineError(
        f"the engine in {place} is not for this bundle and machine: {'; '.join(wrong)}",
        bundle,
        build,
        argument="backend",
    )


def has_engine(bundle: Path, graph_name: str, backend: str) -> bool:
    """Return whether the bundle has an engine of the graph ``graph_name``; it is not read or checked."""
    return bool(_places(bundle, graph_name, backend))


def kept_engine(place: Path, key: Key) -> StoredEngine | None:
    """Return the engine in directory ``place`` if it has exactly this key and is not damaged."""
    try:
        entry = _read_entry(place)
    except _UNREADABLE:
        return None
    return (
        StoredEngine(place / ENGINE, entry) if entry.key == key and artifact_cache.is_intact(place) else None
    )


def _entries(bundle: Path, graph_name: str, backend: str) -> dict[Path, Entry]:
    """Return the engines of a graph by their directories, those for few GPUs first."""
    entries = {}
    for place in _places(bundle, graph_name, backend):
        try:
            entries[place] = _read_entry(place)
        except _UNREADABLE as error:
            problem = f"the engine in {place} is damaged: {ENTRY}: {error}"
            raise EngineError(problem, bundle, {"backend": backend}, argument="backend") from error
    return dict(sorted(entries.items(), key=lambda item: (_breadth(item[1]), item[0])))


def _places(bundle: Path, graph_name: str, backend: str) -> list[Path]:
    # tensorrt-rtx-portable is not a directory of the backend tensorrt
    own = re.compile(rf"{backend}-({PORTABLE}$|sm\d)")
    entries = (bundle / ENGINES).glob(f"{backend}-*/{graph_name}/{ENTRY}")
    return [path.parent for path in entries if own.match(path.parts[-3])]


def _breadth(entry: Entry) -> float:
    hardware = entry.key.hardware
    return math.inf if hardware == PORTABLE else hardware.count("+")


def _read_entry(place: Path) -> Entry:
    """Read the entry of an engine; raise one of :data:`_UNREADABLE` for a damaged one."""
    check_inside(place, place / ENTRY)
    return msgspec.json.decode(read_small(place / ENTRY), type=Entry)


def _undamaged(bundle: Path, place: Path, entry: Entry) -> StoredEngine:
    damage = artifact_cache.find_damage(place)
    if damage:
        problem = f"the engine in {place} is damaged: {damage}"
        raise EngineError(problem, bundle, entry.build(), argument="backend")
    return StoredEngine(place / ENGINE, entry)


def differences(found: Key, wanted: Mapping[str, object]) -> list[str]:
    """Return in words the parts of the key in which an engine differs from ``wanted``."""
    parts = [(name, getattr(found, name), value) for name, value in wanted.items()]
    return [f"{name} is {_text(is_)}, wanted {_text(want)}" for name, is_, want in parts if is_ != want]


@contextmanager
def exclusive(place: Path) -> Iterator[None]:
    """Lock the engine directory ``place``, so that no other process builds into it during the block.

    Waits for a process that has the lock, and removes what a killed one left. Raises
    :class:`~controlnext.errors.WorkError` if nothing can be written.
    """
    # a run without built engines does not need it
    from filelock import FileLock

    lock = FileLock(place.parent / f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise WorkError(f"engines cannot be written to {place.parent}: {error}") from error
    with lock:
        remove_abandoned(place.parent, place.name)
        yield


@contextmanager
def new_engine(place: Path) -> Iterator[Path]:
    """Yield a directory to write an engine into; it becomes ``place`` when the block ends without an error.

    Raises :class:`~controlnext.errors.WorkError` if it cannot be written.
    """
    try:
        with artifact_cache.store(place) as made:
            yield made
    except OSError as error:
        raise WorkError(f"the engine cannot be written to {place}: {error}") from error


def write_entry(made: Path, entry: Entry) -> None:
    """Write the entry of the engine in directory ``made``."""
    (made / ENTRY).write_bytes(msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n")


def _text(value: object) -> str:
    text = str(value)
    return text[:16] if len(text) == 64 and text.isalnum() else text
