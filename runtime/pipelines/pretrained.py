"""Pipelines from the model hub and to it, with diffusers' names."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from controlnext.bundle.hub import hub_copy, inner_directory, push_bundle, save_bundle
from controlnext.bundle.remote import is_remote
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.pipelines.diffusers_names import (
    INSTEAD,
    LOADING,
    SHARING,
    check_arguments,
    no_attribute,
    tells_names,
)
from controlnext.types import Precision


def refuse_torch_dtype(value: object, argument: str = "torch_dtype") -> None:
    """Raise :class:`InputError` for diffusers' argument ``torch_dtype`` or ``dtype``, unless it is None."""
    if value is not None:
        raise InputError(
            f"{argument} is {value}, but a bundle has its own precision; leave it out, and load a bundle"
            f" that was exported with the `precision` that you need: {', '.join(Precision)}",
            argument=argument,
        )


class Pretrained(ABC):
    """The part of a pipeline that fetches its bundle, saves it and sends it."""

    bundle: Bundle

    if not TYPE_CHECKING:  # else every name would be an attribute to them

        def __getattr__(self, name: str) -> Any:
            """Raise :class:`AttributeError`, for an attribute of diffusers' with what takes its place."""
            raise no_attribute(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute; raise :class:`AttributeError` for those of diffusers' in :data:`INSTEAD`."""
            if name in INSTEAD:
                raise no_attribute(self, name)
            super().__setattr__(name, value)

    @classmethod
    @abstractmethod
    def load(cls, bundle: str | Path, *args: Any, **options: Any) -> Self:
        """Load the bundle in a directory."""

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> Self:
        """Load a bundle from a directory or from the model hub, into whose cache it is downloaded once.

        Args:
            repo_or_path: a directory, ``owner/name`` or ``owner/name@revision`` at the hub, or a location
                such as ``s3://...``.
            revision: branch, tag or commit at the hub.
            subfolder: the directory of the bundle there.
            token, cache_dir, local_files_only, force_download: for ids of the hub, as of huggingface_hub's
                ``snapshot_download``.
            options: those of :meth:`Pipeline.load`.

        Raises:
            BundleError: there is none, or the hub does not give it.
            InputError: a value of another kind, or a revision of what is not at the hub.
            TypeError: an unknown argument; of diffusers' own it says what takes their place.
            MissingDependencyError: huggingface_hub is not installed; directories do not need it.
        """
        for dtype in ("torch_dtype", "dtype"):
            refuse_torch_dtype(options.pop(dtype, None), dtype)
        accepted = inspect.signature(cls.load).parameters
        # they are diffusers' and optimum's
        check_arguments(f"{cls.__name__}.from_pretrained", options, accepted, LOADING, whose="")
        folder = inner_directory(subfolder)
        if not isinstance(repo_or_path, str | Path):
            raise InputError(
                f"repo_or_path is {repo_or_path!r}; give a directory, a hub id or a location such as s3://...",
                argument="repo_or_path",
            )
        if isinstance(repo_or_path, Path) or is_remote(repo_or_path) or _is_there(Path(repo_or_path)):
            if revision is not None:
                raise InputError(
                    f"revision is {revision!r}, but {repo_or_path} is no id of the hub; remove it",
                    argument="revision",
                )
            return cls.load(_join(repo_or_path, folder), **options)
        repository, _, named = repo_or_path.partition("@")
        copy = hub_copy(
            repository,
            revision=revision or named or None,
            subfolder=folder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls.load(copy, **options)

    @tells_names(SHARING)
    def save_pretrained(
        self, save_directory: str | Path, *, force: bool = False, licence: str | None = None
    ) -> Path:
        """Copy the bundle to a new directory, with a model card; return it.

        ``force``: replace a bundle that is there.
        Raises :class:`InputError` for a directory with other files, or where none can be made.
        """
        if not isinstance(save_directory, str | Path):
            raise InputError(
                f"save_directory is {save_directory!r}; give the path of a new directory",
                argument="save_directory",
            )
        return save_bundle(self.bundle.path, Path(save_directory), force=force, licence=licence)

    @tells_names(SHARING)
    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        licence: str | None = None,
    ) -> str:
        """Send the bundle to the model hub in one commit; return the commit's address.

        Only files that changed are sent, built engines never. A model card is written if there is none;
        ``licence``: for that card, an identifier of the hub such as "openrail++".

        Raises:
            BundleError: the hub refuses it, or cannot be reached.
            InputError: a value that no hub takes.
            MissingDependencyError: huggingface_hub is not installed.
        """
        return push_bundle(
            self.bundle.path,
            repo_id,
            revision=revision,
            subfolder=subfolder,
            token=token,
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
            licence=licence,
        )


def _join(location: str | Path, folder: str) -> str | Path:
    """Return the location of a directory in a local or a remote one, as :meth:`Pretrained.load` takes it."""
    if not is_remote(location):
        return Path(location) / folder
    return f"{str(location).rstrip('/')}/{folder}" if folder else str(location)


def _is_there(place: Path) -> bool:
    """Return whether a path is there, or is one that no hub id could be."""
    try:
        return place.exists()
    except OSError:
        return True
