"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.chunks import ChunkWriter, answer_head, encode_json
from flashlet.serving.api.completion_choice import CompletionChoice, CompletionPrompt, prompt_first
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.parameters import check_num_sequences, generation_requests
from flashlet.serving.api.prompts import plain_prompts
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.completions import Completion, CompletionRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.api.structured import format_grammar
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.errors import InvalidRequestError

DEFAULT_MAX_TOKENS = 16  # as OpenAI's


def completions_router(service: Service) -> APIRouter:
    """The legacy endpoint."""
    router = APIRouter(
        route_class=json_route(service.config.max_body_bytes, service.answering.answer), tags=["completions"]
    )

    @router.post("/v1/completions", responses=responses(Completion, Completion))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue one or more prompts."""
        model = service.model_for(body.model)
        requests = await completion_requests(model, body)
        generation = await Generation.submit(service, model, requests, body.num_choices)
        head = answer_head("text_completion", "cmpl-", body, service, model)
        choices = _choices(model, body, generation)
        events = generation.events()
        if generation.requests[0].prompt_logprobs is not None:
            events = prompt_first(events, body.num_choices)
        if body.stream:
            writer = ChunkWriter(head, body, generation)
            encoded = _chunks(events, writer, choices)
            return EventStream(encoded, generation.cancel, generation.headers, writer.resume_id)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            async for index, event in events:
                choices[index].add(event)
        answers = [{"index": index, **choice.answer()} for index, choice in enumerate(choices)]
        answer = head | {"choices": answers, "usage": generation.usage()}
        return json_response(answer, generation.headers)

    return router


async def completion_requests(model: LoadedModel, body: CompletionRequest) -> list[GenerationRequest]:
    """What the endpoint queues. Raises InvalidRequestError and QueueFullError."""
    if body.best_of not in {None, body.num_choices}:
        raise InvalidRequestError(f"best_of: expected n ({body.num_choices}), got {body.best_of}", "best_of")
    check_num_sequences(body, len(body.prompts), model.max_sequences)
    add_special_tokens = body.add_special_tokens is not False
    prompts = await plain_prompts(model, body.prompts, add_special_tokens, body.truncate_prompt_tokens)
    requests = generation_requests(
        body,
        prompts,
        continues_prompt=True,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        echo_logprobs=body.logprobs if body.echo else None,
        grammar=await format_grammar(model, body),
    )
    if body.max_tokens is None:  # the default gives way to a long prompt
        room = [model.max_model_len - len(item.prompt) for item in requests]
        requests = [
            replace(item, max_tokens=max(1, min(DEFAULT_MAX_TOKENS, left)))
            for item, left in zip(requests, room, strict=True)
        ]
    return requests


def _choices(model: LoadedModel, body: CompletionRequest, generation: Generation) -> list[CompletionChoice]:
    """The choices of all prompts, in the order of their `index`."""
    n = body.num_choices
    prompts = [
        CompletionPrompt(model, body, sequence, given)
        for sequence, given in zip(generation.requests[::n], body.prompts, strict=True)
    ]
    return [
        CompletionChoice(model, body, sequence, prompts[index // n])
        for index, sequence in enumerate(generation.requests)
    ]


async def _chunks(
    events: AsyncIterator[tuple[int, TokenEvent]], writer: ChunkWriter, choices: list[CompletionChoice]
) -> AsyncIterator[bytes]:
    """Encoded chunks: one per token, then the finish reason, and the usage at the end."""
    async for index, event in events:
        text, logprobs, ids = choices[index].delta(event)
        chunk = b""
        if text or logprobs is not None or not choices[index].only_ends(event):
            scores = b"null" if logprobs is None else encode_json(logprobs)
            chunk = writer.chunk(index, b'"text":' + encode_json(text) + ids, scores)
            ids = b""
        if event.finish_reason is not None:
            chunk += writer.chunk(index, b'"text":""' + ids, finish=event.finish_reason)
        yield chunk
    yield writer.ending()
