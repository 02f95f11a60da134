"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.chat_choice import ChatChoice
from flashlet.serving.api.chunks import ChunkWriter, answer_head, encode_json
from flashlet.serving.api.conversation import Conversation
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.chat import ChatChunk, ChatCompletion, ChatRequest
from flashlet.serving.api.service import Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.errors import InvalidRequestError


def chat_router(service: Service) -> APIRouter:
    """The endpoint for conversations."""
    router = APIRouter(
        route_class=json_route(service.config.max_body_bytes, service.answering.answer), tags=["chat"]
    )

    @router.post("/v1/chat/completions", responses=responses(ChatCompletion, ChatChunk))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        model = service.model_for(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequestError("top_logprobs: only allowed where logprobs is true", "top_logprobs")
        conversation = await Conversation.submit(service, model, body)
        generation = conversation.generation
        choices = [
            ChatChoice(model, body, sequence, answer)
            for sequence, answer in zip(generation.requests, conversation.answers, strict=True)
        ]
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        head = answer_head(kind, "chatcmpl-", body, service, model)
        if body.stream:
            writer = ChunkWriter(head, body, generation)
            encoded = _events(generation, writer, choices)
            return EventStream(encoded, generation.cancel, generation.headers, writer.resume_id)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            async for index, event in generation.events():
                choices[index].push(event)
        answers = [{"index": index, **choice.answer()} for index, choice in enumerate(choices)]
        answer = head | {"choices": answers, "usage": generation.usage()}
        return json_response(answer | choices[0].prompt_fields(), generation.headers)

    return router


async def _events(
    generation: Generation, writer: ChunkWriter, choices: list[ChatChoice]
) -> AsyncIterator[bytes]:
    """Encoded chunks: the role, one per token, the finish reason, and the usage at the end."""
    further = choices[0].prompt_ids()  # in the first chunk
    async for index, event in generation.events():
        choice = choices[index]
        chunk = b""
        if not choice.started:
            chunk = writer.chunk(index, choice.start(), further=further)
            further = b""
        for delta in choice.push(event):
            chunk += writer.chunk(
                index, b'"delta":' + encode_json(delta) + choice.take_ids(), choice.take_logprobs()
            )
        if choice.finish_reason is not None:
            payload = b'"delta":{}' + choice.take_ids()
            chunk += writer.chunk(index, payload, choice.take_logprobs(), choice.finish_reason)
        if chunk:
            yield chunk
    yield writer.ending()
