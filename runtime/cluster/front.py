"""The front: takes requests from Serve's proxies, answers what needs no engine, passes on the rest."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.bundle.remote import local_copy
from controlnext.runtime.cluster.elsewhere import Elsewhere
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.serving.access_log import AccessLog
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.log_format import write_worker_log
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.request_ids import HEADER


class Front:
    """Answers HTTP requests with the help of ``replicas``; see :class:`Elsewhere`.

    Raises :class:`ControlNeXtError` for bundles that cannot be served.
    """

    def __init__(self, arguments: dict[str, Any], replicas: DeploymentHandle) -> None:
        self._spec, self._replicas, self._metrics = ClusterSpec.read(arguments), replicas, Metrics()
        write_worker_log(as_json=self._spec.log_json, prompts=self._spec.log_prompts)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, as Serve asks for it when this object is made."""
        spec, metrics = self._spec, self._metrics
        settings = spec.guarded()
        models = Models([local_copy(bundle) for bundle in spec.bundles], settings, spec.load(), metrics)
        elsewhere = partial(Elsewhere, replicas=self._replicas, several=len(spec.bundles) > 1)
        app = make_app(models, settings, metrics, local=spec.local, elsewhere=elsewhere)
        return _without_request_id(AccessLog(app, metrics, prompts=spec.log_prompts))

    def metrics(self) -> bytes:
        """Return the metrics of this front in Prometheus' text format."""
        return self._metrics.text()


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """Return an application that leaves the header with the request's id to Serve's proxy."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[HEADER]
            await send(message)

        await app(scope, receive, tell)

    return call
