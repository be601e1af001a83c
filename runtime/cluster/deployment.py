"""The application on Ray Serve: replicas behind its proxies."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from controlnext.runtime.cluster.elsewhere import REPLICA
from controlnext.runtime.cluster.proxy import RETRY_AFTER
from controlnext.runtime.cluster.replica import Replica
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.serving.loading import Load

BUILDER = f"{__name__}:build"
"""Where Serve's configuration files find :func:`build`."""
QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Settings of Serve's own log: the replicas have a line for each request."""
_PERIOD, _PATIENCE = 2.0, 30.0
"""Seconds between health checks, and those that one may take."""


def build(args: dict[str, Any]) -> Application:
    """Return the application that Serve runs, of the arguments in :meth:`ClusterSpec.fields`.

    Raises :class:`InputError` for arguments that are not accepted.
    """
    return application(ClusterSpec.read(args))


def application(spec: ClusterSpec, load: Load | None = None) -> Application:
    """Return the application that Serve runs; ``load``: opens the pipelines in place of the spec's own."""
    replicas = serve.deployment(serve.ingress()(Replica), name=REPLICA, **replica_options(spec))
    return replicas.bind(spec.fields(), load)


def replica_options(spec: ClusterSpec) -> dict[str, Any]:
    """Return the options of the replicas' deployment.

    A replica takes as many requests as run at once and as many again, so that it never waits for the next;
    the others of those that may wait do so at the proxy, for whichever replica is free first.
    """
    settings, wanted = spec.settings, spec.replicas
    ahead = min(settings.max_rows, settings.max_waiting)
    options: dict[str, Any] = {
        "max_ongoing_requests": settings.max_rows + ahead,
        # Serve counts those that it is just giving to a replica too, which may be idle
        "max_queued_requests": max(settings.max_rows, settings.max_waiting - ahead),
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER),
        "ray_actor_options": {"num_cpus": spec.threads, "num_gpus": int(spec.on_gpu)},
        "health_check_period_s": _PERIOD,
        "health_check_timeout_s": _PATIENCE,
        "graceful_shutdown_timeout_s": settings.grace,
    }
    if wanted.least == wanted.most:
        return {**options, "num_replicas": wanted.most}
    scaling = {
        "min_replicas": wanted.least,
        "max_replicas": wanted.most,
        # as many as share the steps of a replica
        "target_ongoing_requests": settings.max_rows,
    }
    return {**options, "autoscaling_config": scaling}
