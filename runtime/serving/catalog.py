"""The routes that tell of the server: its models, its health, its metrics."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from controlnext.runtime.serving.answers import HealthAnswer, ModelAnswer, ModelFacts, ModelsAnswer, errors
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.service import Profile, Service

logger = logging.getLogger(__name__)


def catalog_routes(service: Service) -> APIRouter:
    """Return the routes that tell of the models, and the metrics."""
    router = APIRouter()

    @router.get("/v1/models", tags=["models"], responses=errors())
    async def list_models() -> ModelsAnswer:
        """List the bundles that are served, loaded or not."""
        return ModelsAnswer(data=[_answer(profile) for profile in service.profiles.values()])

    @router.get("/v1/models/{model}", tags=["models"], responses=errors(404))
    async def describe_model(model: str) -> ModelAnswer:
        """Describe one bundle that is served."""
        service.models.describe(model)
        return _answer(service.profiles[model])

    @router.get("/metrics", tags=["probes"], response_class=Response, responses=errors())
    def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return router


def health_routes(models: Models) -> APIRouter:
    """Return the routes that tell of the server's health; they need no key."""
    router = APIRouter()

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live", tags=["probes"], responses={503: {"model": HealthAnswer}})
    async def live() -> Response:
        """Answer with 200 as long as the server runs; if a request failed, only if a step works since."""
        try:
            await models.check()
        except Exception:  # any: what it is stands in the log of the request
            logger.exception("a step of a model failed again")
            return JSONResponse({"status": "failing"}, 503)
        return JSONResponse({"status": "ok"})

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready", tags=["probes"], responses={503: {"model": HealthAnswer}})
    async def ready() -> Response:
        """Answer with 200 while requests are admitted: the first bundle is loaded, and nothing stops."""
        status = "ready" if models.ready else "stopping" if models.draining else "loading"
        return JSONResponse({"status": status}, 200 if models.ready else 503)

    return router


def _answer(profile: Profile) -> ModelAnswer:
    bundle = profile.bundle
    return ModelAnswer(id=bundle.name, created=bundle.created, controlnext=ModelFacts(**profile.facts()))
