"""The application: all addresses, what errors become, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pgsr import __version__
from pgsr.errors import PgsrError

from .batcher import Busy
from .face_routes import add_faces
from .film_routes import add_films
from .guard import FAILURE, Doorkeeper, Guard, Refusal, answer, visit_of
from .metrics import CONTENT_TYPE
from .models import Models, opened
from .page import load
from .requests import Bounds, ModelsAnswer
from .service import Service, is_known, sentence
from .settings import Settings

ABOUT = (
    "Faces by a seed and an index: the same pair is the same face, to the byte, at any time, in any batch. "
    "docs/serving.md has examples."
)


def _add_others(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["server"])
    async def models() -> ModelsAnswer:
        """The bundles, the first one being what is taken unless you say; and what may be asked for."""
        limits = service.limits
        return ModelsAnswer.model_validate(
            {
                "models": [model.description() for model in service.models],
                "limits": Bounds(
                    count=limits.count, frames=limits.frames, pixels=limits.pixels, body=limits.body
                ),
                "version": __version__,
            }
        )

    @app.get("/healthz", tags=["server"], response_class=Response)
    async def healthz() -> Response:
        """The process answers."""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", tags=["server"], response_class=Response)
    async def readyz() -> Response:
        """Faces can be asked for; 503 before, and while the server ends."""
        ready = service.ready
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' form."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    for name, file in load().items():
        app.add_api_route(f"/{name}", _page(file.data, file.media, file.etag), include_in_schema=False)


def _page(data: bytes, media: str, etag: str) -> Callable[[Request], Awaitable[Response]]:
    async def file(request: Request) -> Response:
        headers = {"cache-control": "no-cache", "etag": etag}
        if is_known(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media, headers=headers)

    return file


# ----------------------------------------------------------------------------
# The application.


def _add_errors(app: FastAPI, service: Service) -> None:
    """Every error is one sentence in JSON."""

    def respond(request: Request, refusal: Refusal) -> Response:
        headers, body = answer(refusal, visit_of(request.scope).id)
        service.metrics.refused.labels(refusal.reason).inc()
        return Response(body, refusal.status, headers)

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Response:
        return respond(request, error)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return respond(request, Refusal(503, str(error), "busy", error.seconds))

    @app.exception_handler(PgsrError)
    async def failed(request: Request, error: PgsrError) -> Response:
        return respond(request, Refusal(500, sentence(error), "failure"))

    @app.exception_handler(MemoryError)
    async def no_memory(request: Request, error: MemoryError) -> Response:
        return respond(request, Refusal(503, "there is not enough memory for this now", "memory", 1.0))

    @app.exception_handler(Exception)  # it is raised again behind this; the guard logs and counts it
    async def unexpected(request: Request, error: Exception) -> Response:
        headers, body = answer(Refusal(500, FAILURE, "failure"), visit_of(request.scope).id)
        return Response(body, 500, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return respond(request, Refusal(422, f"{where[:80]}: {str(first['msg'])[:200]}", "parameter"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if isinstance(
            error.__cause__, Refusal
        ):  # FastAPI takes whatever ends a body for one that is malformed
            return respond(request, error.__cause__)
        texts = {404: "there is nothing at this address", 405: "this address does not take that method"}
        text = texts.get(error.status_code, str(error.detail)[:200])
        response = respond(request, Refusal(error.status_code, text, "address"))
        if error.headers:
            response.headers.update(error.headers)
        return response


def build(models: Models, settings: Settings) -> tuple[ASGIApp, Service]:
    """The application with all that stands before it, and what its addresses share."""
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(models, service.metrics.observe_batch):
            service.ready = True
            yield
            service.ready = False
            service.films.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="pgsr-serve",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # which would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    add_faces(app, service)
    add_films(app, service)
    _add_others(app, service)
    _add_errors(app, service)
    if settings.keys:
        document = app.openapi()  # which is kept
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    inner: ASGIApp = Doorkeeper(app, settings.keys, service.metrics)
    if settings.origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["ETag", "Retry-After", "X-Request-ID"],
        )
    return Guard(inner, settings, service.metrics), service
