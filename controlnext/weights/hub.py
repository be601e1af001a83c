"""Download of repositories from the model hub: only the needed files, once, and from the cache when
offline."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from controlnext.errors import CheckpointError, first_line
from controlnext.hub_errors import refusal_of
from controlnext.secrets import without_secrets

log = logging.getLogger(__name__)

FileChoice = Callable[[Sequence[str]], list[str]]
"""Selects the needed files from the names of all; raises :class:`CheckpointError` if they are missing."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit.

    ``sizes``: bytes by name, None where the hub does not tell; ``here``: the names of those that are in the
    cache; ``problem``: why they are those of an earlier download, empty if they are the hub's.
    """

    commit: str
    sizes: Mapping[str, int | None]
    here: frozenset[str]
    problem: str = ""


def list_repository(repository: str, revision: str | None) -> Listing:
    """Return what :func:`fetch` would find, without downloading anything.

    Where the hub cannot be asked, the files of an earlier download. Raises :class:`CheckpointError` as
    :func:`fetch` does.
    """
    try:
        info = _ask(repository, revision, sizes=True)
    except HFValidationError as error:
        raise CheckpointError(f"{repository} is not a hub id: {first_line(error)}") from error
    except Exception as error:  # no connection: each network library has its own exception
        directory, reason = _earlier_directory(repository, revision, error)
        found = {name: (directory / name).stat().st_size for name in _names(directory)}
        return Listing(directory.name, found, frozenset(found), reason)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    cache = constants.HF_HUB_CACHE
    here = {
        name
        for name in sizes
        if isinstance(try_to_load_from_cache(repository, name, cache_dir=cache, revision=info.sha), str)
    }
    return Listing(info.sha or "", sizes, frozenset(here))


def cache_directory() -> Path:
    """Return the directory that files of the hub are downloaded to."""
    return Path(constants.HF_HUB_CACHE)


@contextmanager
def without_bars() -> Iterator[None]:
    """Have the library draw no progress bars in the block: it does for files that are in the cache too."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _ask(repository: str, revision: str | None, *, sizes: bool = False) -> Any:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    return HfApi().model_info(repository, revision=revision, timeout=timeout, files_metadata=sizes)


def fetch(repository: str, revision: str | None, wanted: FileChoice) -> tuple[Path, str]:
    """Download the files of a repository that ``wanted`` selects; return their directory and commit.

    ``revision``: a branch, tag or commit; the main branch by default. If the hub cannot be reached or refuses
    access, an earlier download is used, provided that ``wanted`` finds the needed files in it. Raises
    :class:`CheckpointError` saying what is wrong and how to fix it.
    """
    try:
        info = _ask(repository, revision)
    except HFValidationError as error:
        raise CheckpointError(f"{repository} is not a hub id: {first_line(error)}") from error
    except Exception as error:  # no connection: each network library has its own exception
        return _earlier(repository, revision, wanted, error)
    files = wanted([sibling.rfilename for sibling in info.siblings or []])
    log.debug("%s at %s: %s", repository, info.sha, ", ".join(files))
    patterns = [glob.escape(file) for file in files]
    try:
        # by the name of the revision, not its commit: the cache then has it under that name offline too
        directory = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # some of the hub's answers are the cause of an error that a file is not in the cache
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        reason = refusal_of(repository, revision, error) or refusal_of(repository, revision, cause)
        raise CheckpointError(
            reason or f"the download of {repository} failed: {first_line(cause)}; try again"
        ) from error
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise CheckpointError(f"the download of {repository} lacks {', '.join(missing[:8])}; try again")
    return directory, directory.name


def _earlier(repository: str, revision: str | None, wanted: FileChoice, error: Exception) -> tuple[Path, str]:
    """Return an earlier download, after the hub answered with ``error``."""
    directory, reason = _earlier_directory(repository, revision, error)
    try:
        wanted(_names(directory))
    except CheckpointError as lacking:
        raise CheckpointError(f"{reason}, and the earlier download lacks files: {lacking}") from error
    if not isinstance(error, OfflineModeIsEnabled):
        log.warning("%s; the earlier download of %s is used", without_secrets(reason), repository)
    return directory, directory.name


def _earlier_directory(repository: str, revision: str | None, error: Exception) -> tuple[Path, str]:
    """Return the directory of an earlier download, and why the hub, which answered ``error``, is not used."""
    reason = refusal_of(repository, revision, error) or f"the hub cannot be reached ({first_line(error)})"
    try:
        # without patterns every file of the repository would have to be there
        directory = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[])
        )
    except (OSError, ValueError) as absent:
        raise CheckpointError(
            f"{reason}; it was not downloaded before: give the path of a local copy"
        ) from absent
    return directory, reason


def _names(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
