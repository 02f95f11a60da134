"""/v1/responses: conversations that the server can keep, poll and go on with."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.conversation import Conversation
from flashlet.serving.api.dialects.documentation import documented
from flashlet.serving.api.dialects.renaming import fields_renamed
from flashlet.serving.api.dialects.response_items import Item, normal_items
from flashlet.serving.api.dialects.response_request import chat_request, check_request, new_response
from flashlet.serving.api.dialects.response_run import BackgroundRun, ResponseRun
from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import json_response
from flashlet.serving.api.schema.response_object import ResponseEvent, ResponseObject
from flashlet.serving.api.schema.responses import ResponseRequest
from flashlet.serving.api.service import Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from flashlet.serving.responses.response_store import ResponseStore

logger = logging.getLogger(__name__)


class ResponseStream(EventStream):
    """Named events; nothing follows the last one."""

    ending = b""

    def __init__(self, run: ResponseRun, events: AsyncIterator[bytes], *, attached: bool) -> None:
        """`attached`: the run ends when the client leaves."""
        super().__init__(events, run.cancel if attached else _nothing)
        self._run = run

    def failure(self, exc: Exception) -> bytes:
        """An event `error`."""
        return self._run.failure(exc)


def responses_router(service: Service) -> APIRouter:
    """The endpoint that makes responses."""
    router = APIRouter(
        route_class=json_route(service.config.max_body_bytes, service.answering.answer), tags=["responses"]
    )

    @router.post("/v1/responses", responses=documented(ResponseObject, ResponseEvent))
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """Continue a conversation, and keep it."""
        model = service.model_for(body.model)
        check_request(body)
        if body.store is not False:
            await service.responses.open()  # to find out before the answer is made, not after
        owner = owner_of(request)
        history, new = await history_of(service.responses, body, owner), normal_items(body.input)
        chat, names = chat_request(body, history, new)
        with fields_renamed(names):
            conversation = await Conversation.submit(service, model, chat)
        response = new_response(body, service.config.model_names[0])
        keeper = _Keeper(service.responses, owner, response, [*history, *new])
        run = ResponseRun(conversation, model, response, keeper.keep)
        if body.background:
            background = await keeper.start(run)
            if body.stream:
                return ResponseStream(run, background.follow(-1), attached=False)
            return json_response(response)
        events = run.events()
        if body.stream:
            return ResponseStream(run, _joined(events), attached=True)
        async with cancel_on_disconnect(request.receive, run.cancel):
            async for _ in events:
                pass
        if run.error is not None:
            raise run.error
        return json_response(response)

    return router


async def history_of(store: ResponseStore, body: ResponseRequest, owner: str) -> list[Item]:
    """Items of the conversation that goes on. Raises InvalidRequestError if it cannot."""
    if body.previous_response_id is None:
        return []
    field, code = "previous_response_id", "previous_response_not_found"
    try:
        previous = await store.get(body.previous_response_id, owner)
    except NotFoundError as exc:
        raise InvalidRequestError(f"{field}: {exc}", field, code) from None
    status = previous.response["status"]
    if status in {"queued", "in_progress"}:
        raise InvalidRequestError(
            f"{field}: expected a response that has ended, got one that is {status}", field
        )
    return [*previous.items, *previous.response["output"]]


async def _joined(events: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[bytes]:
    async for some in events:
        yield b"".join(some)


def _nothing() -> None:
    pass


class _Keeper:
    """Stores one response, if it is to be stored."""

    def __init__(
        self, store: ResponseStore, owner: str, response: dict[str, Any], items: Sequence[Item]
    ) -> None:
        self._store = store
        self._owner = owner
        self._response = response
        self._items = [*items]
        self._background: BackgroundRun | None = None
        self._stored = False  # with its end

    async def start(self, run: ResponseRun) -> BackgroundRun:
        """Let `run` go on without a client. It can be found from now on."""
        try:
            await self._put(None)
        except BaseException:
            run.cancel()
            raise
        background = self._background = BackgroundRun(run)
        running, response_id = self._store.running, self._response["id"]
        running[response_id] = background
        background.task.add_done_callback(lambda _: self._stored and running.pop(response_id))
        return background

    async def keep(self, last: Sequence[bytes]) -> None:
        """Store the response when it has ended; `last`: its last events.

        A background response that cannot be stored stays in memory, for whoever polls.
        """
        if not self._response["store"]:
            return
        if self._background is None:
            await self._put(None)
            return
        try:
            await self._put(b"".join([*self._background.log, *last]))
            self._stored = True
        except Exception:
            logger.exception("%s could not be stored; it is lost when the server ends", self._response["id"])

    async def _put(self, events: bytes | None) -> None:
        from flashlet.serving.responses.response_table import StoredResponse

        stored = StoredResponse(self._response, self._items, events)
        await self._store.call(lambda table: table.put(self._owner, stored))
