"""The stub of the model hub in the place of the hub, with a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from support import stub_hub
from support.stub_hub import StubHub


@contextmanager
def stand_in_hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """Run an empty hub, which the library asks; its cache, empty too, is in ``directory``."""
    with stub_hub.serve() as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        # the first releases that will do have it here
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(directory / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(directory / "token"))
        forget_sessions()
        yield hub
    forget_sessions()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what ``HF_HUB_OFFLINE=1`` sets, which the library reads when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_sessions()


def forget_sessions() -> None:
    """Before 1.0 a session is made for being online or offline, and kept."""
    getattr(_http, "reset_sessions", lambda: None)()
