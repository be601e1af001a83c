"""The HTTP server from its start to its end: listens, loads, serves, lets requests finish, stops."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from controlnext.errors import InputError
from controlnext.runtime.serving.access_log import AccessLog
from controlnext.runtime.serving.connections import http_config
from controlnext.runtime.serving.models import Models

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS = 2
"""Seconds for the answers of requests that were cancelled."""
_LAST_STEP = 5.0
"""Seconds for a step that nobody waits for any more, and that nothing can interrupt, to end."""
_INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended."""
_TICK = 0.05
_LARGEST_PORT = 65535


def check_port(port: int) -> None:
    """Raise :class:`InputError` for a number that is no port; 0 is one."""
    if not 0 <= port <= _LARGEST_PORT:
        raise InputError(
            f"port is {port}; it must be an integer from 0 to {_LARGEST_PORT}, 0 for a free one",
            argument="port",
        )


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0 takes a free one.

    Raises :class:`InputError` for an address or port that cannot be had.
    """
    check_port(port)
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family)
        # connections have it from here: else small answers wait 40 ms for the client's acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except socket.gaierror as error:
        raise _no_address(host, error) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host, error) from error
        problem = {
            errno.EADDRINUSE: "which another program uses; give another one",
            errno.EACCES: "which only the administrator may use; give one above 1023",
        }.get(error.errno or 0, f"which cannot be used ({error.strerror}); give another one")
        raise InputError(f"port is {port}, {problem}, or 0 for a free one", argument="port") from error


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket: ``"http://127.0.0.1:8000"``."""
    return url_of(*listener.getsockname()[:2])


def url_of(host: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Return whether only this machine reaches a listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def warn_if_open(listener: socket.socket, *, guarded: bool) -> None:
    """Warn of a socket that others than this machine reach, unless a key is needed there (``guarded``)."""
    if not (guarded or is_local(listener)):
        logger.warning("whoever reaches %s may use it; require a key with `api_keys`", address_of(listener))


class Server:
    """Serves an application on a listening socket until SIGTERM or Ctrl-C.

    It answers at once; the models are ready after the first bundle was loaded, when ``on_ready`` is called.
    The signal makes the models admit no more requests. Those that run get ``grace`` seconds to finish and are
    cancelled then. A second Ctrl-C ends the process at once, and so does a step that goes on for 5 s after
    that; ``on_abort`` is called before.
    """

    def __init__(
        self,
        application: AccessLog,
        models: Models,
        listener: socket.socket,
        *,
        grace: float,
        on_ready: Callable[[], None],
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._application, self._models, self._listener = application, models, listener
        self._grace, self._on_ready, self._on_abort = grace, on_ready, on_abort
        self._stop = asyncio.Event()

    def run(self) -> None:
        """Serve until a signal comes; raise the error of the first bundle where it cannot be loaded."""
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Serve as :meth:`run` does, in a running event loop."""
        http = _Http(http_config(self._application, _LAST_WORDS))
        with self._signals():
            serving = asyncio.create_task(http.serve(sockets=[self._listener]))
            loading = asyncio.create_task(self._load())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            loading.cancel()
            await self._drain()
            await self._close_models()
            http.should_exit = True
            await asyncio.gather(serving, stopped)
        with suppress(asyncio.CancelledError):
            await loading

    async def _load(self) -> None:
        try:
            await self._models.start()
            self._on_ready()
        except BaseException:
            self._stop.set()
            raise

    async def _drain(self) -> None:
        """Admit no more requests and wait until those that run have finished, at most ``grace`` seconds."""
        self._models.drain()
        if count := self._unfinished():
            logger.info("stopping; waiting at most %g s for what runs: %d", self._grace, count)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while self._unfinished():
                    await asyncio.sleep(_TICK)
        if count := self._unfinished():
            logger.warning("cancelling what did not finish within %g s: %d", self._grace, count)

    async def _close_models(self) -> None:
        try:
            async with asyncio.timeout(_LAST_STEP):
                await self._models.close()
        except TimeoutError:
            logger.warning("ending within a step of cancelled requests, which takes longer")
            self._abort(0)

    def _abort(self, status: int) -> None:
        """End the process: engines run in threads that nothing can interrupt."""
        self._on_abort()
        os._exit(status)

    def _unfinished(self) -> int:
        """Return the number of requests that run; clips go on after their request was answered."""
        return max(self._application.active, self._models.users)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self._abort(_INTERRUPTED)
        self._stop.set()


class _Http(uvicorn.Server):
    """uvicorn, which leaves the signals to :class:`Server`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals as they are."""
        yield


def _no_address(host: str, error: OSError) -> InputError:
    return InputError(
        f"host is {host!r}: {error.strerror}; give an address of this machine, such as 127.0.0.1",
        argument="host",
    )
