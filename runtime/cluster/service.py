"""The application on a cluster, run until a signal comes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from controlnext.errors import WorkError, first_line
from controlnext.runtime.cluster.deployment import QUIET, application
from controlnext.runtime.cluster.elsewhere import APPLICATION
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import (
    LOCAL,
    READY_CHECK,
    SETTINGS,
    check_room,
    device_on,
    join_cluster,
    leave_cluster,
)
from controlnext.runtime.serving.loading import Load
from controlnext.runtime.serving.server import is_local, open_listener, url_of, warn_if_open

logger = logging.getLogger(__name__)


_LATE = (RayError, TimeoutError)
"""Errors of Serve's calls where its processes do not answer in time, and Serve ends them."""


@contextmanager
def served(spec: ClusterSpec, address: str, host: str, port: int, load: Load | None = None) -> Iterator[str]:
    """Serve on the cluster at ``address`` within the block; yield the URL, once the first bundle is loaded.

    The proxies listen at ``host`` and ``port`` of every node, those of a cluster that serves already where
    they do. ``load``: opens the pipelines in place of the spec's own.

    Raises:
        InputError: there is no such cluster, the address cannot be had, the device is not known, or the
            replicas do not fit.
        WorkError: Serve or the replicas do not start.
        KeyboardInterrupt: SIGTERM or Ctrl-C came before the block.
    """
    with open_listener(host, port) as listener:
        port, local = listener.getsockname()[1], is_local(listener)
        warn_if_open(listener, guarded=spec.api_keys is not None)
    ray = join_cluster(address)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    started = False
    try:
        with _interrupted_by_sigterm():
            spec = replace(spec, device=device_on(ray, spec.device), local=local)
            check_room(ray, spec.threads, spec.device, spec.replicas.least, local=address == LOCAL)
            where = "HeadOnly" if address == LOCAL else "EveryNode"
            http = {"host": host, "port": port}
            _start(serve, proxy_location=where, http_options=http, logging_config=QUIET)
            _deploy(serve, spec, load)
            started = True
            yield _address(serve, host, port)
    finally:
        try:
            _take_away(serve, address, started)
        finally:
            leave_cluster(ray, address)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise :class:`KeyboardInterrupt` within the block, as Ctrl-C does.

    The handlers that Ray sets end the process with a status of their own.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_away(serve: Any, address: str, started: bool) -> None:
    """Take the application from the cluster, with time for what runs if it has ``started``."""
    if address == LOCAL and not started:
        # all of the cluster ends; replicas that still load would have Serve wait for them
        return
    # where Serve did not start there is nothing to take away, and the error is told already
    with nullcontext() if started else suppress(RayError, RayServeException):
        serve.delete(APPLICATION, _blocking=started)
    if address == LOCAL:
        serve.shutdown()


def wait_for_signal() -> None:
    """Return when SIGTERM or Ctrl-C comes."""
    stop = threading.Event()

    def stopped(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, stopped) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(serve: Any, **options: Any) -> None:
    """Start Serve; once more if its proxy was not ready in time, which Serve replaces with more patience."""
    try:
        serve.start(**options)
    except _LATE:
        logger.warning("Ray Serve's proxy did not start in time; trying once more")
        try:
            serve.start(**options)
        except _LATE as error:
            raise WorkError(
                f"Ray Serve's proxy did not start in time ({first_line(error)}); try again when this machine"
                f" is less busy, or set {READY_CHECK} to more seconds than {SETTINGS[READY_CHECK]} where Ray"
                " is started"
            ) from error


def _deploy(serve: Any, spec: ClusterSpec, load: Load | None) -> None:
    try:
        serve.run(application(spec, load), name=APPLICATION, route_prefix="/", logging_config=QUIET)
    except _LATE as error:
        raise WorkError(
            f"the replicas did not start: {first_line(error)}; try again when the cluster is less busy"
        ) from error
    except RuntimeError as error:
        raise WorkError(f"the replicas did not start: {_reason(serve, error)}") from error


def _address(serve: Any, host: str, port: int) -> str:
    """Return the URL at which the proxies listen, those of a cluster that serves already where they did."""
    found = serve.api._get_global_client().http_config
    if found.port != port:
        logger.warning("the cluster serves already, at port %d", found.port)
    return url_of(found.host or host, found.port)


def _reason(serve: Any, error: Exception) -> str:
    """Return the last line of what Serve says of the deployments that failed."""
    status = serve.status().applications.get(APPLICATION)
    for deployment in status.deployments.values() if status else ():
        if "FAILED" in str(deployment.status):
            lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
            named = [line for line in lines if "controlnext.errors." in line]
            return (named or lines or [str(error)])[-1].rpartition("controlnext.errors.")[2]
    return str(error)
