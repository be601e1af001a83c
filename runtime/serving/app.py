"""The HTTP application: its routes, and what every request passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from controlnext.errors import ControlNeXtError
from controlnext.runtime.serving.access_log import LEFT
from controlnext.runtime.serving.catalog import catalog_routes, health_routes
from controlnext.runtime.serving.clip_jobs import ClipJobs
from controlnext.runtime.serving.errors import IMAGE_FIELDS, HttpError, of_validation, refusal_of
from controlnext.runtime.serving.gates import BodyLimit, Keys, Routes
from controlnext.runtime.serving.images import image_routes
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.page import add_page
from controlnext.runtime.serving.request_ids import RequestIds
from controlnext.runtime.serving.service import Service
from controlnext.runtime.serving.settings import ServerSettings
from controlnext.runtime.serving.videos import video_routes


def make_app(
    models: Models,
    settings: ServerSettings,
    metrics: Metrics,
    *,
    local: bool = False,
) -> FastAPI:
    """Return the application that serves ``models``; who runs it loads the models and closes them.

    ``local``: only this machine reaches it, which helps to tell pages of other sites from its own.
    Its ``state.clips`` has the clips that were asked for.
    """
    service = Service(models, settings, metrics)
    clips = ClipJobs(service)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await clips.close()

    # FastAPI's pages of documentation load scripts from elsewhere
    app = FastAPI(
        title="controlnext",
        version=version("controlnext"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.clips = clips
    routers = (image_routes(service), video_routes(service, clips), catalog_routes(service))
    # the last one added is the first that a request passes
    app.add_middleware(BodyLimit, most=settings.max_body)
    app.add_middleware(Keys, keys=settings.api_keys, local=local)
    app.add_middleware(Routes, routes=[route for routes in routers for route in routes.routes])
    app.add_middleware(RequestIds)
    _add_handlers(app)
    # for the description of the routes alone: Keys checks before a body is read
    bearer = [Security(HTTPBearer(auto_error=False))] if settings.api_keys else []
    for routes in routers:
        app.include_router(routes, dependencies=bearer)
    app.include_router(health_routes(models))
    add_page(app)
    return app


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def refuse(_request: Request, refusal: HttpError) -> Response:
        return JSONResponse(refusal.body, refusal.status, dict(refusal.headers))

    @app.exception_handler(ControlNeXtError)
    async def explain(request: Request, error: ControlNeXtError) -> Response:
        return await refuse(request, refusal_of(error, getattr(request.state, "fields", IMAGE_FIELDS)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # of a path or a query: the routes read bodies themselves
        return await refuse(request, of_validation(error.errors()[0], ()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return await refuse(request, _of_http(request, error))

    @app.exception_handler(ClientDisconnect)
    async def left(_request: Request, _error: ClientDisconnect) -> Response:
        # nobody reads it
        return Response(status_code=LEFT)


def _of_http(request: Request, error: HTTPException) -> HttpError:
    """Return the answer to a path or method that no route has, or a body that cannot be read at all."""
    here = f"{request.method} {request.url.path}"
    if error.status_code == 404 and error.detail == "Not Found":
        return HttpError(
            404, f"there is no route {here}; /openapi.json describes those there are", code="not_found"
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"there is no route {here}; the path accepts {allowed}"
        return HttpError(405, message, code="method_not_allowed", headers=error.headers or {})
    return HttpError(error.status_code, str(error.detail), code="invalid_body", headers=error.headers or {})
