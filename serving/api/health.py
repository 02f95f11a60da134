"""GET /health, GET /version and GET /metrics."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Response

from flashlet.serving.api.responses import error_responses, json_response, responses
from flashlet.serving.api.schema.server import Health, Version
from flashlet.serving.api.service import Service

METRICS_EXAMPLE = """\
# HELP flashlet:num_requests_running Sequences in the running batch.
# TYPE flashlet:num_requests_running gauge
flashlet:num_requests_running 3.0
"""


def health_router(service: Service) -> APIRouter:
    """The endpoints for whoever watches the server."""
    router = APIRouter(tags=["server"])
    metrics_text = {
        "description": "The metrics",
        "content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS_EXAMPLE}},
    }

    @router.get("/health", responses=responses(Health, errors=(500, 503)))
    async def health() -> Response:
        """Succeed only if a request would be served now."""
        service.ready_model()
        return json_response({"status": "ok"})

    @router.get("/version", responses=responses(Version, errors=(401,)))
    async def server_version() -> Response:
        """Name the server and its version."""
        return json_response({"name": "flashlet", "version": version("flashlet")})

    @router.get("/metrics", response_class=Response, responses=error_responses(401) | {200: metrics_text})
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        stats = service.model.engine_loop.stats() if service.model else None
        text = await asyncio.to_thread(service.metrics.render, stats)
        return Response(text, media_type="text/plain; version=1.0.0; charset=utf-8")

    return router
