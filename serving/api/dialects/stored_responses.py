"""/v1/responses/{id}: responses that are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from flashlet.serving.api.dialects.documentation import documented
from flashlet.serving.api.dialects.responses import ResponseStream
from flashlet.serving.api.files import list_object
from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import json_response
from flashlet.serving.api.schema.response_object import (
    DeletedResponse,
    ResponseEvent,
    ResponseItemList,
    ResponseObject,
)
from flashlet.serving.api.sse import EventStream
from flashlet.serving.errors import InvalidRequestError
from flashlet.serving.responses.response_store import ResponseStore

ERRORS = (400, 401, 404, 503)
MAX_LIMIT, DEFAULT_LIMIT = 100, 20


def stored_responses_router(store: ResponseStore) -> APIRouter:
    """The endpoints for responses that are kept."""
    router = APIRouter(tags=["responses"])

    @router.get("/v1/responses/{response_id}", responses=documented(ResponseObject, ResponseEvent, ERRORS))
    async def retrieve_response(
        response_id: str,
        request: Request,
        stream: Annotated[bool, Query(description="The events of a background response.")] = False,
        starting_after: Annotated[
            int | None, Query(ge=0, le=2**31 - 1, description="`sequence_number` of the last known event.")
        ] = None,
    ) -> Response:
        """A response as it is now, or its events."""
        stored = await store.get(response_id, owner_of(request))
        if not stream:
            if starting_after is not None:
                raise InvalidRequestError(
                    "starting_after: only allowed where stream is true", "starting_after"
                )
            return json_response(stored.response)
        after = -1 if starting_after is None else starting_after
        if run := store.running.get(response_id):
            return ResponseStream(run.run, run.follow(after), attached=False)
        if stored.events is None:
            raise InvalidRequestError(
                "stream: only background responses that this server finished keep their events", "stream"
            )
        return _Replay(stored.events, after)

    @router.get(
        "/v1/responses/{response_id}/input_items", responses=documented(ResponseItemList, errors=ERRORS)
    )
    async def list_input_items(
        response_id: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """What a response went on from: its input, after that of the responses before it."""
        items = (await store.get(response_id, owner_of(request))).items
        return json_response(list_object(*_page(items, limit, order, after)))

    @router.delete("/v1/responses/{response_id}", responses=documented(DeletedResponse, errors=ERRORS))
    async def delete_response(response_id: str, request: Request) -> Response:
        """Delete a response; what continues it stays."""
        owner = owner_of(request)
        await store.get(response_id, owner)
        if run := store.running.get(response_id):
            await run.cancel()
        await store.call(lambda table: table.delete(response_id, owner))
        store.running.pop(response_id, None)  # where its end could not be stored
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @router.post("/v1/responses/{response_id}/cancel", responses=documented(ResponseObject, errors=ERRORS))
    async def cancel_response(response_id: str, request: Request) -> Response:
        """End a background response before its next token; one that has ended stays as it is."""
        owner = owner_of(request)
        stored = await store.get(response_id, owner)
        if not stored.response["background"]:
            raise InvalidRequestError("only background responses can be cancelled", code="not_cancellable")
        if run := store.running.get(response_id):
            await run.cancel()
            return json_response(run.run.response)
        return json_response(stored.response)

    return router


class _Replay(EventStream):
    """The stream of a response that has ended."""

    ending = b""

    def __init__(self, events: bytes, after: int) -> None:
        super().__init__(self._rest(events, after), lambda: None)

    async def _rest(self, events: bytes, after: int) -> AsyncIterator[bytes]:
        rest = events.split(b"\n\n", after + 1)
        if len(rest) > after + 1 and rest[-1]:
            yield rest[-1]


def _page(
    items: Sequence[dict[str, Any]], limit: int, order: str, after: str | None
) -> tuple[list[dict[str, Any]], bool]:
    """At most `limit` items behind the one with the id `after`; whether there are more."""
    ordered = [*items] if order == "asc" else [*reversed(items)]
    if after is not None:
        place = next((index for index, item in enumerate(ordered) if item["id"] == after), None)
        if place is None:
            raise InvalidRequestError(f"after: expected an id of this list, got '{after[:200]}'", "after")
        ordered = ordered[place + 1 :]
    return ordered[:limit], len(ordered) > limit
