"""The server is ready after the warm-up, lets requests finish when it is told to stop, and then ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from controlnext.errors import BundleError, InputError, StoppingError
from controlnext.runtime import Pipeline
from controlnext.runtime.serving import server as server_module
from controlnext.runtime.serving.access_log import AccessLog, Receive, Scope, Send
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.server import Server, address_of, is_local, open_listener
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle

open_pipeline = partial(Pipeline.load, device="cpu", threads=1, cache=False)


class Site:
    """A server with an application of two routes: ``/ready``, and ``/hold``, which uses the model until
    ``release`` is set. ``client`` is a client of it."""

    def __init__(self, bundle: Path, load: Callable[[Path], Pipeline], grace: float) -> None:
        metrics = Metrics()
        self.models = Models([bundle], ServerSettings(), load, metrics)
        self.release, self.ready = asyncio.Event(), asyncio.Event()
        listener = open_listener("127.0.0.1", 0)
        self.client = httpx.AsyncClient(base_url=address_of(listener), timeout=10)
        self.log = AccessLog(self._application, metrics)
        self.server = Server(self.log, self.models, listener, grace=grace, on_ready=self.ready.set)

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        status = 200 if self.models.ready else 503
        if scope["path"] == "/hold":
            try:
                async with self.models.use("bundle"):
                    await self.release.wait()
            except StoppingError:
                status = 503
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def status(self, path: str) -> int:
        return (await self.client.get(path)).status_code

    async def hold(self) -> asyncio.Task[int]:
        """Begin a request that holds the model, and return it once it does."""
        request = asyncio.create_task(self.status("/hold"))
        while not self.models.users:
            await asyncio.sleep(0.001)
        return request


Work = Callable[[Site], Coroutine[Any, Any, None]]
Serve = Callable[..., None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("server") / "bundle", "sd15")


@pytest.fixture
def serve(bundle: Path) -> Serve:
    """Return a function that runs ``work`` beside a server, which has to end by itself."""

    def run(work: Work, load: Callable[[Path], Pipeline] = open_pipeline, grace: float = 30) -> None:
        async def both() -> None:
            site = Site(bundle, load, grace)
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                group.create_task(site.server.serve())
                await work(site)
            await site.client.aclose()

        asyncio.run(both())

    return run


def test_it_is_ready_once_the_first_bundle_is_loaded(serve: Serve) -> None:
    loads = Event()

    def slow(path: Path) -> Pipeline:
        if site_is_up.is_set():
            assert loads.wait(10)
        site_is_up.set()
        return open_pipeline(path)

    async def work(site: Site) -> None:
        assert await site.status("/ready") == 503
        assert not site.ready.is_set()
        loads.set()
        await site.ready.wait()
        assert await site.status("/ready") == 200
        signal.raise_signal(signal.SIGINT)

    # the first opening only checks the bundle
    site_is_up = Event()
    serve(work, slow)


def test_it_ends_without_an_error_when_it_is_stopped_while_it_loads(serve: Serve) -> None:
    loads, opened = Event(), Event()

    def slow(path: Path) -> Pipeline:
        if opened.is_set():
            assert loads.wait(10)
        opened.set()
        return open_pipeline(path)

    async def work(site: Site) -> None:
        assert await site.status("/ready") == 503
        signal.raise_signal(signal.SIGINT)
        while not site.models.draining:
            await asyncio.sleep(0.001)
        assert await site.status("/hold") == 503
        loads.set()

    serve(work, slow)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_refuses_others(serve: Serve, number: signal.Signals) -> None:
    async def work(site: Site) -> None:
        await site.ready.wait()
        running = await site.hold()
        signal.raise_signal(number)
        while not site.models.draining:
            await asyncio.sleep(0.001)
        # the kept-alive connections of these two hold nothing up
        assert await site.status("/hold") == 503
        assert await site.status("/ready") == 503
        assert not running.done()
        site.release.set()
        assert await running == 200

    serve(work)


def test_what_does_not_finish_in_time_is_cancelled(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "_LAST_WORDS", 0.01)
    monkeypatch.setattr("controlnext.runtime.serving.models._PATIENCE", 0.01)

    async def work(site: Site) -> None:
        await site.ready.wait()
        running = await site.hold()
        signal.raise_signal(signal.SIGTERM)
        assert await running == 503
        assert site.log.active == 0

    serve(work, grace=0.01)
    assert "cancelling what did not finish within 0.01 s: 1" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_step_that_goes_on_ends_with_the_process(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing interrupts an engine, and nobody waits for it any more."""
    ended: list[int | str] = []
    monkeypatch.setattr(server_module, "_LAST_STEP", 0.01)
    monkeypatch.setattr(server_module.os, "_exit", ended.append)

    async def work(site: Site) -> None:
        site.server._on_abort = lambda: ended.append("files are removed")
        await site.ready.wait()
        close = site.models.close
        monkeypatch.setattr(site.models, "close", partial(asyncio.sleep, 10))
        signal.raise_signal(signal.SIGTERM)
        while not ended:
            await asyncio.sleep(0.001)
        await close()

    serve(work)
    assert ended == ["files are removed", 0]


def test_a_first_bundle_that_cannot_be_loaded_ends_it_with_that_error(serve: Serve) -> None:
    opened: list[Path] = []

    def damaged(path: Path) -> Pipeline:
        opened.append(path)
        if len(opened) > 1:
            raise BundleError("a file is damaged")
        return open_pipeline(path)

    async def work(_site: Site) -> None:
        pass

    with pytest.raises(ExceptionGroup) as caught:
        serve(work, damaged)
    (error,) = caught.value.exceptions
    assert isinstance(error, BundleError)


def test_a_second_interrupt_ends_the_process_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []

    async def work(site: Site) -> None:
        await site.ready.wait()
        await site.hold()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
        while not statuses:
            await asyncio.sleep(0.001)
        site.release.set()

    monkeypatch.setattr("os._exit", statuses.append)
    serve(work)
    assert statuses == [130]


def test_addresses() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        assert is_local(listener)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(InputError, match=f"port is {port}, which another program uses") as caught:
            open_listener("127.0.0.1", port)
        assert caught.value.argument == "port"
    with open_listener("0.0.0.0", 0) as listener:
        assert not is_local(listener)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_of_this_machine(host: str) -> None:
    with pytest.raises(InputError, match=f"host is '{host}'.*such as 127.0.0.1") as caught:
        open_listener(host, 0)
    assert caught.value.argument == "host"


def test_a_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(InputError, match="port is 80, which only the administrator may use"):
        open_listener("127.0.0.1", 80)
