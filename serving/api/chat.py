"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.api.body import json_route
from flashlet.serving.api.chunks import ChunkWriter, answer_head, encode_json
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.logprobs import chat_logprobs
from flashlet.serving.api.parameters import check_num_sequences, generation_requests
from flashlet.serving.api.prompts import chat_prompt
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.chat import ChatChunk, ChatCompletion, ChatRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.api.structured import format_grammar
from flashlet.serving.errors import ContextLengthError, InvalidRequestError

ROLE = b'"delta":{"role":"assistant","content":""}'


def chat_router(service: Service) -> APIRouter:
    """The endpoint for conversations."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["chat"])

    @router.post("/v1/chat/completions", responses=responses(ChatCompletion, ChatChunk))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        model = service.model_for(body.model)
        generation = await _submit(service, model, body)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        head = answer_head(kind, "chatcmpl-", body, service, model)
        if body.stream:
            writer = ChunkWriter(head, body, generation)
            return EventStream(_events(generation, writer, model), generation.cancel)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            choices = await _choices(generation, model, body)
        return json_response(head | {"choices": choices, "usage": generation.usage()})

    return router


async def _submit(service: Service, model: LoadedModel, body: ChatRequest) -> Generation:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs: only allowed where logprobs is true", "top_logprobs")
    try:
        return await _queue(service, model, body)
    except ContextLengthError as exc:
        exc.param = "messages" if exc.param == "prompt" else exc.param
        raise


async def _queue(service: Service, model: LoadedModel, body: ChatRequest) -> Generation:
    check_num_sequences(body, 1, model.max_sequences)
    prompt = await chat_prompt(model, body)
    requests = generation_requests(
        body,
        [prompt],
        continues_prompt=bool(body.continue_final_message),
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await format_grammar(model, body),
    )
    return await Generation.submit(service, model, requests, body.num_choices)


async def _events(generation: Generation, writer: ChunkWriter, model: LoadedModel) -> AsyncIterator[bytes]:
    """Encoded chunks: the role, one per token, the finish reason, and the usage at the end."""
    started = [False] * len(generation.requests)
    async for index, event in generation.events():
        chunk = b""
        if not started[index]:
            started[index] = True
            chunk = writer.chunk(index, ROLE)
        ends = model.only_ends(event, generation.requests[index])
        scores = [event.logprobs] if event.logprobs is not None and not ends else []
        if event.text or (event.token_id is not None and not ends):
            logprobs = encode_json(chat_logprobs(model.tokenizer, scores)) if scores else b"null"
            chunk += writer.chunk(index, b'"delta":{"content":%b}' % encode_json(event.text), logprobs)
        if event.finish_reason is not None:
            chunk += writer.chunk(index, b'"delta":{}', finish=event.finish_reason)
        yield chunk
    yield writer.ending()


@dataclass(slots=True)
class _Choice:
    """One answer while it is collected."""

    text: list[str] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


async def _choices(generation: Generation, model: LoadedModel, body: ChatRequest) -> list[dict[str, Any]]:
    """The `choices` of a plain answer."""
    choices = [_Choice() for _ in generation.requests]
    async for index, event in generation.events():
        choice = choices[index]
        choice.text.append(event.text)
        if event.logprobs is not None and not model.only_ends(event, generation.requests[index]):
            choice.scores.append(event.logprobs)
        choice.finish_reason = event.finish_reason
    return [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": chat_logprobs(model.tokenizer, choice.scores) if body.logprobs else None,
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
