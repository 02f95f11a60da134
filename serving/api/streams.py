"""GET /v1/streams/{id}: the rest of a stream that was cut."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import stream_responses
from flashlet.serving.api.schema.chat import ChatChunk
from flashlet.serving.api.service import Service


def streams_router(service: Service) -> APIRouter:
    """The endpoint for clients that lost their connection."""
    router = APIRouter(tags=["streams"])

    @router.get("/v1/streams/{stream_id}", response_class=Response, responses=stream_responses(ChatChunk))
    async def resume_stream(
        stream_id: str,
        request: Request,
        last_event_id: Annotated[
            int, Header(ge=0, le=2**31 - 1, description="`id:` of the last event that arrived; 0: none did.")
        ] = 0,
    ) -> Response:
        """Go on with a stream whose request had `stream_options.resumable`."""
        return service.answering.resume(owner_of(request), stream_id, last_event_id)

    return router
