"""A start that is interrupted, and what is told of a server that anybody reaches."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError
from ray.serve.exceptions import RayServeException

from controlnext.errors import WorkError
from controlnext.runtime import ray_cluster
from controlnext.runtime.cluster import service
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import LOCAL, join_cluster, leave_cluster

SPEC = ClusterSpec(["/bundles/toy"])


class Serve:
    """Ray Serve, whose ``run`` has the process get SIGTERM."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def run(self, *_arguments: Any, **_options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def delete(self, _name: str, *, _blocking: bool) -> None:
        self.calls.append(f"delete, {_blocking=}")

    def __getattr__(self, name: str) -> Any:
        return lambda **_: self.calls.append(name)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return the Ray Serve of a cluster that is not there."""
    found = Serve()
    own = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}], cluster_resources=dict)
    monkeypatch.setattr(service, "join_cluster", lambda _: own)
    monkeypatch.setattr(service, "leave_cluster", lambda *_: found.calls.append("leave"))
    monkeypatch.setattr(ray, "serve", found)
    return found


@pytest.mark.parametrize(
    ("address", "calls"),
    [(LOCAL, ["start", "leave"]), ("10.0.0.5:6379", ["start", "delete, _blocking=False", "leave"])],
)
def test_a_start_that_is_terminated(cluster: Serve, address: str, calls: list[str]) -> None:
    """Nothing waits for replicas that still load; the status is that of Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), service.served(SPEC, address, "127.0.0.1", 0):
        pytest.fail("it has started")
    assert cluster.calls == calls
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError("HTTP proxies not available after 60s.")])
def test_a_proxy_that_is_late(
    cluster: Serve, monkeypatch: pytest.MonkeyPatch, error: Exception, late: int
) -> None:
    """Serve is started once more; then it is one line."""
    errors = [error] * late

    def start(**_options: Any) -> None:
        cluster.calls.append("start")
        if errors:
            raise errors.pop()

    def delete(_name: str, *, _blocking: bool) -> None:
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    monkeypatch.setattr(cluster, "start", start, raising=False)
    monkeypatch.setattr(cluster, "delete", delete)
    expected = (KeyboardInterrupt, None) if late == 1 else (WorkError, "proxy did not start in time .*; try")
    with (
        pytest.raises(expected[0], match=expected[1]) as caught,
        service.served(SPEC, "10.0.0.5:6379", "127.0.0.1", 0),
    ):
        pytest.fail("it has started")
    assert len(str(caught.value).splitlines()) <= 1
    assert cluster.calls == ["start", "start", "leave"]


def test_replicas_that_are_late(cluster: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_arguments: Any, **_options: Any) -> None:
        raise RayActorError(error_msg="it was killed\nby whom")

    monkeypatch.setattr(cluster, "run", run)
    with (
        pytest.raises(WorkError, match=r"did not start: .*it was killed; try again when") as caught,
        service.served(SPEC, LOCAL, "127.0.0.1", 0),
    ):
        pytest.fail("it has started")
    assert len(str(caught.value).splitlines()) == 1


def test_ray_makes_sigterm_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_options: Any) -> None:
        raise SystemExit(signal.SIGTERM)

    left = []
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_cluster, "leave_cluster", lambda *given: left.append(given))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(KeyboardInterrupt):
        join_cluster(LOCAL)
    assert left == [(ray, LOCAL)]


def test_no_process_outlives_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other kinds stay."""
    monkeypatch.setattr(ray_cluster, "_LAST_WORDS", 0.1)
    monkeypatch.setattr(ray_cluster, "_PARENTS", ("sleep",))
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = SimpleNamespace(shutdown=lambda: None)
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(command) as other:
        # a cluster that was there before goes on, also one that this process started
        leave_cluster(own, "127.0.0.1:6379")
        assert one.poll() is None
        leave_cluster(own, LOCAL)
        assert one.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", None, True), ("0.0.0.0", "keys", False), ("127.0.0.1", None, False)],
)
def test_a_server_that_anybody_reaches(
    host: str,
    keys: str | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def join(_address: str) -> None:
        raise WorkError("there is none")

    monkeypatch.setattr(service, "join_cluster", join)
    spec = ClusterSpec(["/bundles/toy"], api_keys=keys)
    with caplog.at_level(logging.WARNING), pytest.raises(WorkError), service.served(spec, LOCAL, host, 0):
        pytest.fail("it has started")
    assert ("may use it; require a key with `api_keys`" in caplog.text) == warned
