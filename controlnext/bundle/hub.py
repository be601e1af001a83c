"""Bundles from and to the model hub; huggingface_hub does the work, with its cache and offline mode."""

from __future__ import annotations

import glob
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from controlnext.bundle.card import CARD, model_card
from controlnext.bundle.files import MANIFEST, new_folder
from controlnext.bundle.format import check_file
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, ControlNeXtError, InputError, first_line
from controlnext.families.values import check_flags
from controlnext.hub_errors import LOG_IN, refusal_of
from controlnext.optional import extra

_NEITHER = "{!r} is neither a directory nor a hub id; give the path of a bundle, or owner/name"


def hub_copy(
    repository: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the directory of a bundle of the hub in the cache of huggingface_hub; the arguments are those of
    its ``snapshot_download``.

    ``subfolder``: the directory of the bundle in the repository, of which alone files are fetched.

    Raises:
        BundleError: there is no such repository or revision, it holds no bundle, which is found before
            anything large is fetched, or there is no copy of it where the hub is not asked.
        MissingDependencyError: huggingface_hub is not installed.
    """
    with extra("hub"):
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import RemoteEntryNotFoundError
    _check_token(token)
    asked: Any = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    place = PurePosixPath(inner_directory(subfolder))
    with _explained(repository, revision, f"there is no directory {repository}, and ", _NEITHER):
        try:
            manifest = hf_hub_download(repository, str(place / MANIFEST), revision=revision, **asked)
        except RemoteEntryNotFoundError as error:
            raise BundleError(
                f"{repository} at the hub is not a bundle: it has no {place / MANIFEST}; make one of a"
                " checkpoint with controlnext export"
            ) from error
        bundle = Path(manifest).parent
        # the repository may have other bundles too
        names = [glob.escape(str(place / name)) for name in read_manifest(bundle).files]
        # of the same commit, whatever is pushed meanwhile
        commit = bundle.parents[len(place.parts) - 1].name if place.parts else bundle.name
        snapshot_download(repository, revision=commit, allow_patterns=names, **asked)
    return bundle


def inner_directory(subfolder: object) -> str:
    """Return the directory of a bundle in a repository as names with slashes between; "" for its top.

    Raises :class:`InputError` for what is no such directory.
    """
    if subfolder is None:
        return ""
    place = PurePosixPath(subfolder) if isinstance(subfolder, str) else PurePosixPath("..")
    if place.is_absolute() or ".." in place.parts:
        raise InputError(
            f"subfolder is {subfolder!r}; give a directory within the repository, such as 'fp16'",
            argument="subfolder",
        )
    return "" if place == PurePosixPath() else str(place)


def push_bundle(
    bundle: Path,
    repository: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    licence: str | None = None,
) -> str:
    """Send a bundle to the hub in one commit, with a model card if there is none; return its address.

    Files that the repository has already are not sent; built engines stay here. The repository is made if it
    does not exist. Raises as :func:`hub_copy`.
    """
    with extra("hub"):
        from huggingface_hub import CommitOperationAdd, HfApi
    manifest = read_manifest(bundle)
    _check_token(token)
    _check_texts(repo_id=repository, revision=revision, commit_message=commit_message, licence=licence)
    check_flags(private=False if private is None else private, create_pr=create_pr)
    place, api = PurePosixPath(inner_directory(subfolder)), HfApi(token=token)
    files = {str(place / name): str(check_file(bundle, manifest, name)) for name in manifest.files}
    files[str(place / MANIFEST)] = str(bundle / MANIFEST)
    operations = [CommitOperationAdd(path, local) for path, local in files.items()]
    with _explained(repository, revision, unknown="repo_id is {!r}, which is no id; give owner/name"):
        # a name without an owner is the user's
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True)
        if not api.file_exists(repository, CARD, revision=revision):
            card = model_card(manifest, repository, licence).encode()
            operations.append(CommitOperationAdd(CARD, io.BytesIO(card)))
        commit = api.create_commit(
            repository,
            operations,
            commit_message=commit_message or f"Bundle of {manifest.family}, {manifest.precision}",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


def save_bundle(bundle: Path, directory: Path, *, force: bool = False, licence: str | None = None) -> Path:
    """Copy a bundle to a new directory, with a model card and without built engines; return the directory.

    ``force``: replace a bundle that is there.
    """
    _check_texts(licence=licence)
    manifest = read_manifest(bundle)
    try:
        with new_folder(directory, force) as made:
            for name in (*manifest.files, MANIFEST):
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                # what the hub's cache has is links
                source = bundle / name if name == MANIFEST else check_file(bundle, manifest, name)
                shutil.copyfile(source, made / name)
            (made / CARD).write_text(model_card(manifest, directory.name, licence), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the bundle cannot be copied to {directory}: {error.strerror}; give another directory",
            argument="save_directory",
        ) from error
    return directory


@contextmanager
def _explained(repository: str, revision: str | None, begin: str = "", unknown: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that begins with ``begin``.

    ``unknown``: that for a name which no repository can have.
    """
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
    )

    try:
        yield
    except ControlNeXtError:
        raise
    except HFValidationError as error:
        raise BundleError(unknown.format(repository)) from error
    except LocalTokenNotFoundError as error:
        raise InputError(f"there is no token here; {LOG_IN}", argument="token") from error
    except Exception as error:  # no connection: each network library has its own exception
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        reason = refusal_of(repository, revision, error) or refusal_of(repository, revision, cause)
        if not reason and isinstance(error, LocalEntryNotFoundError):
            reason = (
                f"{repository} was not downloaded before, and the hub is not asked or cannot be reached; go"
                " online, or give the path of a copy"
            )
        told = f"the hub cannot be reached ({first_line(cause)}); try again later"
        raise BundleError(begin + (reason or told)) from error


def _check_texts(**given: object) -> None:
    """Raise :class:`InputError` for an argument that is neither None nor a text with letters in it."""
    for name, value in given.items():
        left = value is None and name != "repo_id"
        if not (left or (isinstance(value, str) and value)):
            wanted = "owner/name" if name == "repo_id" else "a text"
            raise InputError(f"{name} is {value!r}; it must be {wanted}", argument=name)


def _check_token(token: object) -> None:
    """Raise :class:`InputError`, which does not show it, for a token that no request can carry."""
    if token is None or isinstance(token, bool):
        return
    if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
        raise InputError(
            "token is not the text of a token; give it without spaces and line ends, such as hf_...",
            argument="token",
        )
