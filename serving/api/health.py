"""GET /health and GET /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from flashlet.serving.api.responses import json_response
from flashlet.serving.api.schema.errors import ErrorBody
from flashlet.serving.api.service import Service


def health_router(service: Service) -> APIRouter:
    """The endpoints for whoever watches the server."""
    router = APIRouter(tags=["health"])
    unready = {"model": ErrorBody, "description": "A request would not be served now"}

    @router.get("/health", responses={500: unready, 503: unready})
    async def health() -> Response:
        """Succeed only if a request would be served now."""
        service.ready_model()
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        stats = service.model.engine_loop.stats() if service.model else None
        text = await asyncio.to_thread(service.metrics.render, stats)
        return Response(text, media_type="text/plain; version=1.0.0; charset=utf-8")

    return router
