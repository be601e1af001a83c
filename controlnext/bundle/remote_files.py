"""The files of a bundle that lies elsewhere, read through fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.reader import LARGEST
from controlnext.errors import BundleError, ControlNeXtError, InputError, WorkError, blames
from controlnext.optional import extra, not_installed
from controlnext.secrets import HIDDEN, has_password, password_of, without_secrets

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHUNK = 8 << 20
"""Bytes that are read at once: few enough for the memory, many enough for a request over the network."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "GatedRepoError")
"""Errors of filesystems' own libraries that are no :class:`PermissionError` and have no status."""
_OFFLINE = "OfflineModeIsEnabled"
"""The error of the hub's library that its user forbade the network."""


def has_scheme(location: str) -> bool:
    """Return whether ``location`` is ``scheme://...`` and not a path."""
    return _SCHEME.match(location) is not None


def check_location(location: str) -> None:
    """Raise :class:`InputError` for a location that other machines are not to get: it names no directory, has
    a scheme that fsspec does not know, or a password; :class:`MissingDependencyError` without fsspec.

    Neither the library of the scheme is needed nor the network.
    """
    _checked_name(location)
    if has_password(location):
        raise InputError(
            f"bundle {location} has a user name or password in it, which Ray would store and show;"
            " leave it out, and give the credentials in the environment of every node",
            argument="bundle",
        )
    _check_scheme(location)


class RemoteFiles:
    """The files below a location ``scheme://...`` of a filesystem that fsspec knows.

    ``title``: the location without a password, for messages. ``name``: its last part.

    Raises:
        InputError: the scheme is not known, or the location has no path.
        MissingDependencyError: fsspec or the library of the scheme is not installed.
    """

    def __init__(self, location: str) -> None:
        self.title = without_secrets(location.rstrip("/"))
        self.name = _checked_name(location)
        self._password = password_of(location)
        with self._explained(self.title):
            self._system, root = _connect(location, self.title)
        self._root = root.rstrip("/")

    def read_manifest(self) -> bytes:
        """Return the content of the manifest; raise :class:`BundleError` if there is none."""
        try:
            content = b""
            for chunk in self.chunks(MANIFEST):
                content += chunk
                if len(content) > LARGEST:
                    raise BundleError(f"{self.title}/{MANIFEST} is too large for a manifest; export again")
        except BundleError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise self._no_manifest() from error
        return content

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of the file ``name`` in pieces.

        Raises :class:`BundleError` if it is missing, :class:`InputError` without permission, and
        :class:`WorkError` if reading fails otherwise.
        """
        title = f"{self.title}/{name}"
        with (
            self._explained(title),
            closing(self._system.open(f"{self._root}/{name}", "rb", block_size=_CHUNK)) as file,
        ):
            while chunk := file.read(_CHUNK):
                yield chunk

    def _no_manifest(self) -> BundleError:
        with self._explained(self.title):
            there = self._system.exists(self._root)
        if there:
            return BundleError(
                f"{self.title} is not a bundle: it has no {MANIFEST}; make one with controlnext export"
            )
        return _nothing_at(self.title)

    @contextmanager
    def _explained(self, title: str) -> Iterator[None]:
        """Turn the errors of filesystems, which are of many classes, into one line about ``title``."""
        try:
            with blames("bundle"):
                yield
        except ControlNeXtError:
            raise
        except (FileNotFoundError, IsADirectoryError) as error:
            if _status(error.__cause__) in (401, 403, 404):  # what the hub says of a repository
                raise _nothing_at(title) from error
            if isinstance(cause := error.__cause__, OSError) and not isinstance(cause, FileNotFoundError):
                # what HTTP's filesystem makes of an error of the connection
                raise WorkError(
                    f"{title} cannot be reached ({self._reason(cause)}); check the address and the network"
                ) from error
            raise BundleError(
                f"{title} is missing; copy the bundle there again", argument="bundle"
            ) from error
        except Exception as error:
            raise _explanation(error, title, self._reason(error)) from error

    def _reason(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        if self._password:
            # libraries tell parts of a location
            text = text.replace(self._password, HIDDEN)
        return without_secrets(text)[:200] or type(error).__name__


def _checked_name(location: str) -> str:
    """Return the last part of a location; raise :class:`InputError` if there is none."""
    parts = [part for part in location.partition("://")[2].split("/") if part]
    if not parts or {".", ".."} & set(parts):
        raise InputError(
            f"bundle {location} names no directory; give scheme://path/of/the/bundle",
            argument="bundle",
        )
    if "?" in location and location.lower().startswith(("http://", "https://")):
        raise InputError(
            f"bundle {location} has a query, which signs one file and not the directory of a bundle;"
            " give the address of the directory",
            argument="bundle",
        )
    # the whole of a file system has the name of its host
    return parts[-1].rpartition("@")[2] if len(parts) == 1 else parts[-1]


def _check_scheme(location: str) -> Any:
    """Return fsspec's module; raise :class:`InputError` for a scheme that it does not know."""
    with extra("ray"):
        import fsspec
    scheme = location.partition("://")[0]
    if scheme not in fsspec.available_protocols():
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise InputError(
            f"bundle {location}: unknown scheme {scheme!r}; accepted: a path, or one of {known}",
            argument="bundle",
        )
    return fsspec


def _connect(location: str, title: str) -> tuple[Any, str]:
    """Return fsspec's filesystem of a location and the path in it."""
    fsspec = _check_scheme(location)
    scheme = location.partition("://")[0]
    try:
        # an instance that was used before remembers listings of then
        return fsspec.url_to_fs(location, skip_instance_cache=True)
    except ImportError as error:
        library = str(getattr(error.__cause__, "name", None) or error.name or scheme).partition(".")[0]
        raise not_installed(f"{title} needs {library}, which is not installed", library) from error


def _explanation(error: Exception, title: str, reason: str) -> ControlNeXtError:
    """Return the error to raise for one of a filesystem; ``reason``: its text."""
    if type(error).__name__ == _OFFLINE:
        problem = f"{title} is not asked for, as HF_HUB_OFFLINE is set; unset it, or give the path of a copy"
    elif _is_refusal(error):
        problem = (
            f"no permission to read {title} ({reason}); give the credentials that its filesystem reads"
            " from the environment"
        )
    elif isinstance(error, ValueError):
        problem = f"{title} is no location ({reason}); give scheme://path/of/the/bundle"
    else:
        return WorkError(f"{title} cannot be read ({reason}); try again")
    return InputError(problem, argument="bundle")


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        return True
    # what gcsfs makes of a status 403
    return _status(error) in (401, 403) or str(error).startswith("Forbidden")


def _status(error: BaseException | None) -> int | None:
    """Return the status of the HTTP answer that an error is about; None for other errors."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) or getattr(error, "status", None)


def _nothing_at(title: str) -> BundleError:
    return BundleError(
        f"there is nothing at {title}, or it is not shown to you; check the spelling", argument="bundle"
    )
