"""huggingface_hub in this process as a client of the stub of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from support.stub_hub import StubHub


def connect(hub: StubHub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library ask this hub, without a token, and with an empty cache in ``directory``."""
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


def forget_sessions() -> None:
    """Before 1.0 a session is made for being online or offline, and kept."""
    getattr(_http, "reset_sessions", lambda: None)()
