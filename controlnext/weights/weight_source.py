"""Sources of weights: a local file or directory, or a repository on the model hub; choice of the files to
read."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from controlnext.bundle.files import sha256
from controlnext.bundle.manifest import Source
from controlnext.errors import CheckpointError
from controlnext.hub_names import split_hub_id
from controlnext.weights.hub import fetch
from controlnext.weights.lazy import SUFFIXES, LazyTensor, is_weight_file, read_file

log = logging.getLogger(__name__)

_FILE = r"{stem}(?:\.(\w+))?(?:-\d+-of-(\d+))?(?:\.(\w+))?\.((?i:{suffixes}))"
_SUFFIXES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)

Choice = Callable[[Sequence[str]], Iterable[str]]
"""Selects the needed files from the names of those in a directory and below (``"unet/config.json"``)."""
Beside = Callable[[str, Sequence[str]], Iterable[str]]
"""Selects the files that belong to the named file from the names of those in its directory."""


@dataclass(frozen=True)
class WeightSource:
    """A local file or directory, and the name that a manifest may contain: never its path."""

    path: Path
    name: str
    revision: str = ""

    def source(self, role: str, file: Path) -> Source:
        """Return the origin of one weight file in this source."""
        inside = file.relative_to(self.path).as_posix() if file != self.path else ""
        revision = f"@{self.revision}" if self.revision else ""
        return Source(role, self.name, sha256(file), inside + revision)

    @property
    def directory(self) -> WeightSource:
        """The directory of the file."""
        name = self.name.rpartition("/")[0] or self.path.parent.resolve().name
        return WeightSource(self.path.parent, name, self.revision)


def resolve(given: str | Path, choice: Choice, beside: Beside = lambda _file, _names: ()) -> WeightSource:
    """Return the source that ``given`` names: an existing path, or a hub id,
    ``owner/name[@revision][/directory or file]``.

    From the hub the files that ``choice`` selects are downloaded, or the named file and those ``beside`` it.
    Raises :class:`CheckpointError` if there is nothing.
    """
    path = Path(given).expanduser()
    if path.exists():
        if not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{given} is neither a file nor a directory; give one of them")
        # the name of a link's target may be a digest, as in the hub's cache
        return WeightSource(path, path.name if path.name not in ("", "..") else path.resolve().name)
    repository, revision, inside = split_hub_id(given)
    try:
        directory, commit = fetch(
            repository, revision, partial(wanted_of, repository, inside, choice, beside)
        )
    except CheckpointError as error:
        raise CheckpointError(f"{given}: no such file or directory here, and {error}") from error
    return WeightSource(directory / inside, str(given), commit)


def wanted_of(
    repository: str, inside: str, choice: Choice, beside: Beside, names: Sequence[str]
) -> list[str]:
    """Return the files to download from a repository with files of these ``names``, or from ``inside`` it."""
    if inside in names:
        directory, slash, file = inside.rpartition("/")
        return [inside, *(directory + slash + name for name in beside(file, _below(names, directory)))]
    chosen = [f"{inside}/{name}" if inside else name for name in choice(_below(names, inside))]
    if not chosen:
        weights = [name for name in names if is_weight_file(name)]
        raise CheckpointError(
            f"hub repository {repository} has nothing that fits in {inside or 'its top directory'};"
            f" its weights are {', '.join(weights[:8]) or 'none'}; give one file as {repository}/FILE"
        )
    return chosen


def _below(names: Iterable[str], directory: str) -> list[str]:
    prefix = f"{directory}/" if directory else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def choose_weights(names: Iterable[str], stems: Iterable[str]) -> list[str]:
    """Return a directory's weight files to read: those of the first stem that has any.

    ``.safetensors`` is preferred to ``.bin``, ``.ckpt`` and ``.pt``, the plain file to a variant
    (``model.fp16.safetensors``). All shards are returned; raises :class:`CheckpointError` if one is missing.
    Empty if nothing fits.
    """
    names = sorted(names)
    for stem in stems:
        pattern = re.compile(_FILE.format(stem=re.escape(stem), suffixes="|".join(_SUFFIXES)))
        groups: dict[tuple[int, str, int, str], list[str]] = {}
        for name in names:
            if match := pattern.fullmatch(name):
                variant, parts = match[1] or match[3] or "", int(match[2] or 1)
                key = (_SUFFIXES.index(match[4].lower()), variant, parts, match[4])
                groups.setdefault(key, []).append(name)
        if groups:
            key, files = min(groups.items())
            if len(files) != key[2]:
                raise CheckpointError(f"{len(files)} of the {key[2]} parts of {files[0]} are present")
            return files
    return []


def _give_one(directory: Path) -> str:
    """Return a hint that lists a directory's weight files in place of the expected names."""
    paths = sorted(directory.glob("*")) + sorted(directory.glob("*/*"))
    present = [path.relative_to(directory).as_posix() for path in paths if is_weight_file(path.name)]
    if not present:
        return "; it has no weights at all: give another directory, a file or a hub id"
    shown = ", ".join(present[:8]) + (" ..." if len(present) > 8 else "")
    return f"; it has {shown}: give the path of the right one, or rename it"


def read_weights(
    weight_source: WeightSource, directory: Path, stems: Sequence[str], role: str
) -> tuple[dict[str, LazyTensor], list[Source]]:
    """Read the weight files in ``directory``, which is ``weight_source`` or in it, or a file itself."""
    files = weight_files(directory, stems, role)
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        log.debug("reading the %s in %s", role, file)
        tensors.update(read_file(file))
    return tensors, [weight_source.source(role, file) for file in files]


def weight_files(directory: Path, stems: Sequence[str], role: str) -> list[Path]:
    """Return the files that :func:`read_weights` reads. Raises :class:`CheckpointError` if present are
    none."""
    if directory.is_file():
        return [directory]
    try:
        chosen = choose_weights((path.name for path in directory.iterdir()), stems)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}; get the missing files") from error
    if not chosen:
        accepted = ", ".join(f"{stem}.safetensors" for stem in stems)
        raise CheckpointError(
            f"{directory} has no weights of the {role}; accepted: {accepted}, or the same as"
            f" {', '.join(SUFFIXES[1:])}{_give_one(directory)}"
        )
    return [directory / name for name in chosen]
