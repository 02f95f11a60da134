"""POST /v1/messages: Anthropic's dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.chunks import encode_json
from flashlet.serving.api.conversation import Conversation, conversation_prompt
from flashlet.serving.api.dialects.documentation import documented
from flashlet.serving.api.dialects.message_errors import message_error
from flashlet.serving.api.dialects.message_request import chat_request
from flashlet.serving.api.dialects.message_writer import MessageWriter
from flashlet.serving.api.dialects.renaming import fields_renamed
from flashlet.serving.api.errors import error_body, error_kind
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.responses import json_response
from flashlet.serving.api.schema.message_answer import (
    AnsweredMessage,
    MessageErrorBody,
    MessageEvent,
    TokenCount,
)
from flashlet.serving.api.schema.messages import CountTokensRequest, MessagesRequest
from flashlet.serving.api.service import Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect


class _MessageStream(EventStream):
    """Named events; nothing follows the last one."""

    ending = b""

    def failure(self, exc: Exception) -> bytes:
        """An event `error`."""
        error = message_error(error_kind(exc).status, error_body(exc)["error"]["message"])
        return b"event: error\ndata: %b\n\n" % encode_json(error)


def messages_router(service: Service) -> APIRouter:
    """The endpoints for conversations in Anthropic's dialect."""
    router = APIRouter(
        route_class=json_route(service.config.max_body_bytes, service.answering.answer), tags=["messages"]
    )

    @router.post("/v1/messages", responses=documented(AnsweredMessage, MessageEvent, error=MessageErrorBody))
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Continue a conversation."""
        model = service.model_for(body.model)
        chat, names = chat_request(body)
        with fields_renamed(names):
            conversation = await Conversation.submit(service, model, chat, cut_at_context=True)
        generation, (answer,) = conversation.generation, conversation.answers
        name = body.model or service.config.model_names[0]
        writer = MessageWriter(name, generation, answer, body.max_tokens)
        if body.stream:
            return _MessageStream(_events(generation, writer), generation.cancel, generation.headers)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            async for _ in _events(generation, writer):
                pass
        return json_response(writer.message, generation.headers)

    @router.post("/v1/messages/count_tokens", responses=documented(TokenCount, error=MessageErrorBody))
    async def count_message_tokens(body: CountTokensRequest) -> Response:
        """Count the tokens of a prompt."""
        model = service.model_for(body.model)
        chat, names = chat_request(body)
        with fields_renamed(names):
            prompt = await conversation_prompt(model, chat)
        return json_response({"input_tokens": len(prompt)})

    return router


async def _events(generation: Generation, writer: MessageWriter) -> AsyncIterator[bytes]:
    """Encoded events; those of one token come together."""
    async for _, event in generation.events():
        events = b"".join(writer.push(event))
        if events:
            yield events
