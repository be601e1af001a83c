"""The errors of the model hub's library as one line, with what helps."""

from __future__ import annotations

from controlnext.errors import first_line

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def refusal_of(repository: str, revision: str | None, error: Exception) -> str:
    """Return the message for the hub's ``error``, with the fix; empty for other errors.

    The library has to be installed.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repository}"
    # a gated repository's error is a RepositoryNotFoundError too
    if isinstance(error, GatedRepoError):
        return f"{repository} is gated: accept its licence at {page}, then {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repository} has no revision {revision or 'main'}: its branches, tags and commits are at {page}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub shows no repository {repository}: check the spelling; if it is a private or gated one,"
            f" ask for access at {page} and {LOG_IN}"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{repository} has no such file: its files are at {page}/tree/{revision or 'main'}"
    # before 1.0 a file that the cache lacks gives this error too, without a response
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return ""
    if error.response.status_code in (401, 403):
        return f"the hub refuses access to {repository} ({first_line(error)}): {LOG_IN}, with a valid token"
    return f"the hub cannot serve {repository} now ({first_line(error)}): try again later"
