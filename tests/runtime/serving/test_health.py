"""A server whose model fails says so, until a step works again."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlnext.runtime import Pipeline
from support.serving import image_call, serve

ROUTE = "/v1/images/generations"


def test_a_server_whose_model_fails_is_not_alive(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches over it starts it anew. Mistakes of requests say nothing of a model."""
    with serve([toy]) as site, monkeypatch.context() as broken:
        site.refused(400, "POST", ROUTE, json=image_call(n=0))
        broken.setattr(Pipeline, "start", lambda *_: 1 / 0)
        assert site.http.get("/health/live").json() == {"status": "ok"}
        site.refused(500, "POST", ROUTE, json=image_call())
        failing = site.http.get("/health/live")
        assert (failing.status_code, failing.json()) == (503, {"status": "failing"})
        broken.undo()
        assert site.http.get("/health/live").json() == {"status": "ok"}
        assert site.http.post(ROUTE, json=image_call()).status_code == 200
