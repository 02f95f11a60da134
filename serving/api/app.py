"""The HTTP application: endpoints, error handling and middleware put together."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from flashlet.serving.api.batches import batches_router
from flashlet.serving.api.chat import chat_router
from flashlet.serving.api.completions import completions_router
from flashlet.serving.api.dialects.message_errors import MessageErrors
from flashlet.serving.api.dialects.messages import messages_router
from flashlet.serving.api.dialects.responses import responses_router
from flashlet.serving.api.dialects.stored_responses import stored_responses_router
from flashlet.serving.api.embeddings import embeddings_router
from flashlet.serving.api.errors import TABLE, error_response
from flashlet.serving.api.estimate import estimate_router
from flashlet.serving.api.files import files_router
from flashlet.serving.api.health import health_router
from flashlet.serving.api.middleware import ApiKeys, HeadRequests, OwnRequests, RequestIds
from flashlet.serving.api.models import models_router
from flashlet.serving.api.openapi import DESCRIPTION, add_document
from flashlet.serving.api.service import Service
from flashlet.serving.api.streams import streams_router
from flashlet.serving.api.tokens import tokens_router
from flashlet.serving.api.verify import verify_router

METHODS = ["DELETE", "GET", "POST"]
EXPOSED = [  # headers for scripts of other origins; SDKs in browsers read when to retry
    "x-request-id",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-flashlet-seed",
    "x-flashlet-cache",
]


def build_api(service: Service) -> FastAPI:
    """The endpoints and their errors, open to whoever can call them."""
    api = FastAPIOffline(
        "/docs", None, title="flashlet", version=version("flashlet"), description=DESCRIPTION
    )  # whose page needs nothing from elsewhere
    add_document(api, service.config)
    for router in (
        chat_router,
        completions_router,
        embeddings_router,
        estimate_router,
        models_router,
        tokens_router,
        streams_router,
        verify_router,
        health_router,
    ):
        api.include_router(router(service))
    for exception in (*TABLE, HTTPException, RequestValidationError):
        api.add_exception_handler(exception, _answer_error)
    return api


def build_line_app(service: Service) -> ASGIApp:
    """What answers the lines of batches, in this process: no keys, no CORS."""
    return RequestIds(OwnRequests(build_api(service)))


def build_app(service: Service) -> ASGIApp:
    """The whole application for one service."""
    api = build_api(service)
    if service.batches is not None:
        api.include_router(files_router(service.batches))
        api.include_router(batches_router(service.batches, service.config.max_body_bytes))
    api.include_router(messages_router(service))
    api.include_router(responses_router(service))
    api.include_router(stored_responses_router(service.responses))
    app: ASGIApp = HeadRequests(api)
    if service.config.api_keys:
        app = ApiKeys(app, service.config.api_keys)
    if service.config.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            app,
            allow_origins=service.config.cors_origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    return MessageErrors(RequestIds(app))


async def _answer_error(request: Request, exc: Exception) -> Response:
    if isinstance(exc, HTTPException) and exc.status_code in {404, 405}:
        what = "path" if exc.status_code == 404 else "method for this path"
        exc.detail = f"no such {what}: {request.method} {request.url.path[:200]}"
        if exc.status_code == 405:
            exc.headers = {"allow": ", ".join(_allowed_methods(request))}
    return error_response(exc)


def _allowed_methods(request: Request) -> list[str]:
    """Methods that the path has; each has a route of its own, and a route only knows its own method."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
