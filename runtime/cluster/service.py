"""The application on a cluster: run until a signal comes, or written as a configuration of Ray Serve."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from controlnext.bundle.files import new_file
from controlnext.errors import InputError, WorkError
from controlnext.processor import usable_cores
from controlnext.runtime.cluster.deployment import BUILDER, build
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import LOCAL, ReplicaRange, join_cluster
from controlnext.runtime.serving.server import is_local, open_listener

logger = logging.getLogger(__name__)

NAME = "controlnext"
"""Name of the application on the cluster."""
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Serve's own log: the front has a line for each request."""


def threads_of_replica(threads: int | None, replicas: ReplicaRange, *, local: bool) -> int:
    """Return the threads of a replica: those that were asked for, or its share of this machine's cores.

    Raises :class:`InputError` without ``threads`` for a cluster elsewhere: its cores are not known here.
    """
    if threads is not None:
        return threads
    if not local:
        raise InputError(
            "threads is missing; give the number of CPU cores that a replica takes on this cluster",
            argument="threads",
        )
    return max(1, usable_cores() // replicas.most)


@contextmanager
def served(spec: ClusterSpec, address: str, host: str, port: int) -> Iterator[str]:
    """Serve on the cluster at ``address`` within the block; yield the URL, once the first bundle is loaded.

    The proxies listen at ``host`` and ``port`` of every node, those of a cluster that serves already where
    they do.

    Raises:
        InputError: there is no such cluster, the address cannot be had, or the device is not known.
        WorkError: the replicas do not start.
    """
    with open_listener(host, port) as listener:
        port, local = listener.getsockname()[1], is_local(listener)
    ray = join_cluster(address)
    from ray import serve

    try:
        spec = replace(_settled(spec, ray), local=local)
        where = "HeadOnly" if address == LOCAL else "EveryNode"
        serve.start(proxy_location=where, http_options={"host": host, "port": port}, logging_config=_QUIET)
        try:
            serve.run(build(spec.fields()), name=NAME, route_prefix="/", logging_config=_QUIET)
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        except RuntimeError as error:
            raise WorkError(f"the replicas did not start: {_reason(serve, error)}") from error
        finally:
            serve.delete(NAME)
            if address == LOCAL:
                serve.shutdown()
    finally:
        ray.shutdown()


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


def write_config(spec: ClusterSpec, path: Path, host: str, port: int) -> None:
    """Write Serve's configuration file of the application, for ``serve deploy`` and KubeRay.

    Raises:
        InputError: the file cannot be written there, or the device is left open.
        WorkError: the disk is full.
    """
    if spec.device == "auto":
        raise InputError(
            "device is auto, and a configuration is for machines that are not known here; give cpu or cuda",
            argument="device",
        )
    application = {
        "name": NAME,
        "route_prefix": "/",
        "import_path": BUILDER,
        "args": spec.fields(),
    }
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "logging_config": _QUIET,
        "applications": [application],
    }
    with new_file(path) as file:
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _settled(spec: ClusterSpec, ray: Any) -> ClusterSpec:
    """Return the spec with its device chosen: CUDA where the cluster has GPUs."""
    if spec.device != "auto":
        return spec
    return replace(spec, device="cuda" if ray.cluster_resources().get("GPU") else "cpu")


def _reason(serve: Any, error: Exception) -> str:
    """Return the last line of what Serve says of the deployments that failed."""
    application = serve.status().applications.get(NAME)
    for deployment in application.deployments.values() if application else ():
        if str(deployment.status) == "DeploymentStatus.DEPLOY_FAILED" or "FAILED" in str(deployment.status):
            lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
            named = [line for line in lines if "controlnext.errors." in line]
            return (named or lines or [str(error)])[-1].rpartition("controlnext.errors.")[2]
    return str(error)
