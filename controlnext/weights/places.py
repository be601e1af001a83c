"""Where weights lie: a local file or folder, or a repository on the model hub; which files there to take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from controlnext.errors import CheckpointError
from controlnext.files import sha256
from controlnext.manifest import Source
from controlnext.weights.lazy import LazyTensor, first_line, read_file

_HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)((?:/[\w.-]+)*)")
_FILE = r"{stem}(?:\.(\w+))?(?:-\d+-of-(\d+))?(?:\.(\w+))?\.(safetensors|bin)"

Choice = Callable[[Sequence[str]], Iterable[str]]
"""Picks what is needed from the names of the files in a folder and below (``"unet/config.json"``)."""


@dataclass(frozen=True)
class Place:
    """A local file or folder, and the name that a manifest may tell: never its path."""

    path: Path
    name: str
    revision: str = ""

    def source(self, role: str, file: Path) -> Source:
        """The provenance of one weight file in this place."""
        inside = file.relative_to(self.path).as_posix() if file != self.path else ""
        revision = f"@{self.revision}" if self.revision else ""
        return Source(role, self.name, sha256(file), inside + revision)


def locate(given: str | Path, choice: Choice) -> Place:
    """The place that ``given`` names: an existing path, else a hub id, ``owner/name[/folder or file]``.

    From the hub the files that ``choice`` picks are downloaded; without a connection an earlier download
    serves. Raises :class:`CheckpointError` where there is nothing.
    """
    path = Path(given).expanduser()
    if path.exists():
        return Place(path, path.resolve().name)
    match = _HUB_ID.fullmatch(str(given))
    if not match:
        raise CheckpointError(f"{given}: no such file or folder, and no hub id (owner/name)")
    repository, inside = match[1], match[2].strip("/")
    try:
        folder, revision = _download(repository, inside, choice)
    except CheckpointError as error:
        raise CheckpointError(f"{given}: no such file or folder here, and {error}") from error
    if not (folder / inside).exists():
        raise CheckpointError(f"{given}: the copy of {repository} that was downloaded before lacks {inside}")
    return Place(folder / inside, str(given), revision)


def _download(repository: str, inside: str, choice: Choice) -> tuple[Path, str]:
    """A folder with what is needed of a hub repository (or what is ``inside`` it), and its revision."""
    try:
        info = HfApi().model_info(repository)
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise CheckpointError(f"the hub refuses {repository}: {first_line(error)}") from error
    except Exception as error:  # no connection; each network library has its own exception
        return _downloaded(repository, first_line(error))
    names = [sibling.rfilename for sibling in info.siblings or []]
    prefix = f"{inside}/" if inside else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    wanted = [inside] if inside in names else [prefix + name for name in choice(below)]
    if not wanted:
        weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
        raise CheckpointError(
            f"hub repository {repository} has nothing that fits in {inside or 'its top folder'};"
            f" its weights are {', '.join(weights[:8])}"
        )
    try:
        folder = snapshot_download(repository, revision=info.sha, allow_patterns=wanted)
    except Exception as error:
        raise CheckpointError(f"the download of {repository} failed: {first_line(error)}") from error
    return Path(folder), info.sha or ""


def _downloaded(repository: str, reason: str) -> tuple[Path, str]:
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except OSError as error:
        raise CheckpointError(
            f"the hub cannot be reached ({reason}); give the path of a local copy"
        ) from error
    return folder, folder.name


def choose_weights(names: Iterable[str], stems: Iterable[str]) -> list[str]:
    """Which of a folder's weight files to read: those of the first stem that has any.

    ``.safetensors`` goes before ``.bin``, the plain file before a variant (``model.fp16.safetensors``).
    All shards are returned; raises :class:`CheckpointError` if one is missing. Empty if nothing fits.
    """
    names = sorted(names)
    for stem in stems:
        pattern = re.compile(_FILE.format(stem=re.escape(stem)))
        groups: dict[tuple[bool, str, int], list[str]] = {}
        for name in names:
            if match := pattern.fullmatch(name):
                variant, parts = match[1] or match[3] or "", int(match[2] or 1)
                groups.setdefault((match[4] == "bin", variant, parts), []).append(name)
        if groups:
            key, files = min(groups.items())
            if len(files) != key[2]:
                raise CheckpointError(f"{len(files)} of the {key[2]} parts of {files[0]} are there")
            return files
    return []


def read_weights(
    place: Place, folder: Path, stems: Sequence[str], role: str
) -> tuple[dict[str, LazyTensor], list[Source]]:
    """The tensors of the weight files in ``folder``, which is ``place`` or in it, or a file itself."""
    if folder.is_file():
        files = [folder]
    else:
        try:
            chosen = choose_weights((path.name for path in folder.iterdir()), stems)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}; get the missing files") from error
        files = [folder / name for name in chosen]
    if not files:
        accepted = ", ".join(f"{stem}.safetensors" for stem in stems)
        raise CheckpointError(
            f"{folder} has no weights of the {role}; looked for {accepted}, or the same as .bin"
        )
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        tensors.update(read_file(file))
    return tensors, [place.source(role, file) for file in files]
