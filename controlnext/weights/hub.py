"""Download of repositories from the model hub: only the needed files, once, and from the cache when
offline."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from controlnext.errors import CheckpointError, first_line
from controlnext.hub_errors import refusal_of
from controlnext.secrets import without_secrets

log = logging.getLogger(__name__)

FileChoice = Callable[[Sequence[str]], list[str]]
"""Selects the needed files from the names of all; raises :class:`CheckpointError` if they are missing."""


def fetch(repository: str, revision: str | None, wanted: FileChoice) -> tuple[Path, str]:
    """Download the files of a repository that ``wanted`` selects; return their directory and commit.

    ``revision``: a branch, tag or commit; the main branch by default. If the hub cannot be reached or refuses
    access, an earlier download is used, provided that ``wanted`` finds the needed files in it. Raises
    :class:`CheckpointError` saying what is wrong and how to fix it.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HFValidationError as error:
        raise CheckpointError(f"{repository} is not a hub id: {first_line(error)}") from error
    except Exception as error:  # no connection: each network library has its own exception
        return _earlier(repository, revision, wanted, error)
    files = wanted([sibling.rfilename for sibling in info.siblings or []])
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
    try:
        wanted([path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()])
    except CheckpointError as lacking:
        raise CheckpointError(f"{reason}, and the earlier download lacks files: {lacking}") from error
    if not isinstance(error, OfflineModeIsEnabled):
        log.warning("%s; the earlier download of %s is used", without_secrets(reason), repository)
    return directory, directory.name
