"""Bundles from and to the model hub; huggingface_hub does the work, with its cache and offline mode."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from controlnext.bundle.card import CARD, model_card
from controlnext.bundle.files import MANIFEST, new_folder
from controlnext.bundle.format import check_size
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, ControlNeXtError, first_line
from controlnext.hub_errors import refusal_of
from controlnext.optional import extra


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
        from huggingface_hub import snapshot_download
    fetch = partial(
        snapshot_download,
        repository,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    manifest, files = (f"{subfolder}/{name}" if subfolder else name for name in (MANIFEST, "*"))
    with _explained(repository, revision, f"there is no directory {repository}, and "):
        directory = Path(fetch(revision=revision, allow_patterns=manifest))
        if not (directory / manifest).is_file():
            raise BundleError(
                f"{repository} at the hub is not a bundle: it has no {manifest}; make one of a checkpoint"
                " with controlnext export"
            )
        # of the same commit, whatever is pushed meanwhile
        fetch(revision=directory.name, allow_patterns=files)
    return directory / (subfolder or "")


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
    place, api = PurePosixPath(subfolder or ""), HfApi(token=token)
    files = {str(place / name): str(check_size(bundle, manifest, name)) for name in manifest.files}
    files[str(place / MANIFEST)] = str(bundle / MANIFEST)
    operations = [CommitOperationAdd(path, local) for path, local in files.items()]
    with _explained(repository, revision):
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
    manifest = read_manifest(bundle)
    with new_folder(directory, force) as made:
        for name in (*manifest.files, MANIFEST):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            # what the hub's cache has is links
            source = bundle / name if name == MANIFEST else check_size(bundle, manifest, name)
            shutil.copyfile(source, made / name)
        (made / CARD).write_text(model_card(manifest, directory.name, licence), encoding="utf-8")
    return directory


@contextmanager
def _explained(repository: str, revision: str | None, begin: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that begins with ``begin``."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except ControlNeXtError:
        raise
    except HFValidationError as error:
        raise BundleError(
            f"{repository} is neither a directory nor a hub id; give the path of a bundle, or owner/name"
        ) from error
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
