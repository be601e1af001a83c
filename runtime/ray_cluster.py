"""The Ray cluster: joined at an address, or started on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from controlnext.errors import InputError, WorkError
from controlnext.optional import extra
from controlnext.processor import usable_cores
from controlnext.runtime.request import is_integer

log = logging.getLogger(__name__)

_PATIENCE = 10
"""Seconds for a cluster to answer."""
_LAST_WORDS = 2.0
"""Seconds for the processes of a cluster to end by themselves."""
_PARENTS = ("gcs_server", "raylet")
"""Names of the processes whose children are all others of a cluster."""
LOCAL = "local"
"""In place of an address: a cluster of this machine alone, which ends with the process."""

READY_CHECK = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
SETTINGS = {
    # a cluster that was not asked for it tells nobody that it was started
    "RAY_USAGE_STATS_ENABLED": "0",
    # a proxy that died is missed after three of these seconds: by default after 30
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # a proxy that does not answer so soon is replaced: by default after 5, less than a busy machine takes
    READY_CHECK: "30",
    # what proxies put before Serve's own application
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "controlnext.runtime.cluster.proxy:middlewares",
}
"""Environment variables that Ray reads when a cluster is started."""


@dataclass(frozen=True)
class ReplicaRange:
    """How many copies of a pipeline there are: at least ``least``, at most ``most``."""

    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not (is_integer(self.least) and is_integer(self.most) and 1 <= self.least <= self.most):
            given = self.least if self.least == self.most else f"{self.least}:{self.most}"
            raise InputError(
                f"replicas is {given}; give N, or MIN:MAX with 1 <= MIN <= MAX",
                argument="replicas",
            )

    @classmethod
    def parse(cls, replicas: str) -> ReplicaRange:
        """Return the range that ``"N"`` or ``"MIN:MAX"`` stands for; raise :class:`InputError` otherwise."""
        parts = replicas.split(":")
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
            raise InputError(
                f"replicas is {replicas!r}; give N, or MIN:MAX, such as 2 or 1:4", argument="replicas"
            )
        return cls(int(parts[0]), int(parts[-1]))


def join_cluster(address: str) -> Any:
    """Join the Ray cluster at ``address``, or start one of this machine alone; return Ray's module.

    ``address``: ``"host:port"``, ``"ray://host:port"``, ``"auto"``, or ``"local"``, which starts one.

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: there is no cluster at the address.
        WorkError: none can be started here.
        KeyboardInterrupt: SIGTERM or Ctrl-C came meanwhile.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    own = address == LOCAL
    if own:
        let_nobody_in()
    with extra("ray"):
        import ray
    try:
        _check_reachable(address)
        dashboard = False if own else None
        ray.init(
            address=address,
            namespace="controlnext",
            logging_level=logging.WARNING,
            include_dashboard=dashboard,
        )
    except (SystemExit, KeyboardInterrupt) as error:
        leave_cluster(ray, address)
        # Ray makes the other one of SIGTERM
        raise KeyboardInterrupt from error
    except Exception as error:  # of many classes, those of gRPC and of the raylet's start among them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if address == LOCAL:
            raise WorkError(f"no Ray cluster can be started here: {reason}") from error
        raise InputError(
            f"there is no Ray cluster at {address!r} ({reason}); give host:port, ray://host:port or auto, or"
            f" {LOCAL} to start one here",
            argument="address",
        ) from error
    return ray


def let_nobody_in() -> None:
    """Have a cluster that is started here accept only its own processes, unless it is set otherwise.

    Ray listens on all addresses of a machine, and who may connect may run any code. Call it before anything
    imports Ray, which reads that once.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        log.warning(
            "Ray was imported before its cluster was started: whoever reaches this machine's ports may join"
            " it; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def leave_cluster(ray: Any, address: str) -> None:
    """Leave the cluster that was joined at ``address``; one that was started for that ends, with all of its
    processes.

    Where Ray kills its raylet, because a worker did not end in time, the raylet's agents go on for a minute.
    """
    if address != LOCAL:
        ray.shutdown()
        return
    import psutil

    started = [child for child in psutil.Process().children() if child.name() in _PARENTS]
    started += [child for parent in started for child in parent.children(recursive=True)]
    ray.shutdown()
    for process in psutil.wait_procs(started, _LAST_WORDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


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


def device_on(ray: Any, device: str) -> str:
    """Return ``device`` of replicas on the cluster that was joined; for ``"auto"`` CUDA if it has GPUs."""
    if device != "auto":
        return device
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def check_room(ray: Any, threads: int, device: str, least: int, *, local: bool) -> None:
    """Raise :class:`InputError` if no node has what one of ``least`` replicas needs: it would wait for ever.

    ``local``: the cluster is this machine, and has to have cores for all replicas.
    """
    nodes = [*(node["Resources"] for node in ray.nodes() if node["Alive"]), *_nodes_to_come()]
    if takes_gpu(device):
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        if not nodes:
            raise InputError(
                f"device is {device} and no node of this cluster has a GPU; give cpu", argument="device"
            )
    cores_of = [int(node.get("CPU", 0)) for node in nodes]
    largest, cores = max(cores_of, default=0), sum(cores_of)
    if local and least * threads > cores:
        raise InputError(
            f"threads is {threads} for {least} replicas and this machine has {cores} cores; give"
            f" {max(1, cores // least)} or fewer `replicas`",
            argument="threads",
        )
    if threads > largest:
        raise InputError(
            f"threads is {threads} and the largest node of this cluster has {largest} cores for its work;"
            " give at most as many, or add a node",
            argument="threads",
        )


def _nodes_to_come() -> list[dict[str, float]]:
    """Return what the nodes have that a cluster's autoscaler may add, as far as it tells."""
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
    except Exception:  # a client of a cluster (ray://) cannot ask
        return []
    return [dict(group.resources) for group in config.node_group_configs] if config else []


def takes_gpu(device: str) -> bool:
    """Return whether a replica on this device takes a GPU."""
    return device.startswith("cuda")


def own_device(device: str) -> str:
    """Return the device as a replica sees it: its GPU is the only one there."""
    return "cuda:0" if takes_gpu(device) else device


def _check_reachable(address: str) -> None:
    """Raise :class:`OSError` where nobody listens: Ray itself tries again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        except (ValueError, OverflowError) as error:
            raise OSError("the port is not a number of at most 65535") from error
