"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.api.body import json_route
from flashlet.serving.api.chunks import ChunkWriter, answer_head, encode_json
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.logprobs import chat_logprobs, prompt_logprobs
from flashlet.serving.api.parameters import check_num_sequences, generation_requests
from flashlet.serving.api.prompts import chat_prompt
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.chat import ChatChunk, ChatCompletion, ChatRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.api.structured import format_grammar
from flashlet.serving.api.token_ids import prompt_token_ids
from flashlet.serving.api.tools.answer import Answer, TextAnswer
from flashlet.serving.api.tools.calling import Calling
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.errors import ContextLengthError, InvalidRequestError


def chat_router(service: Service) -> APIRouter:
    """The endpoint for conversations."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["chat"])

    @router.post("/v1/chat/completions", responses=responses(ChatCompletion, ChatChunk))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        model = service.model_for(body.model)
        calling = Calling.of(body, model)
        generation = await _submit(service, model, body, calling)
        choices = [
            _Choice(model, body, sequence, TextAnswer() if calling is None else calling.answer())
            for sequence in generation.requests
        ]
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        head = answer_head(kind, "chatcmpl-", body, service, model)
        if body.stream:
            writer = ChunkWriter(head, body, generation)
            return EventStream(_events(generation, writer, choices), generation.cancel)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            async for index, event in generation.events():
                choices[index].push(event)
        answers = [{"index": index, **choice.answer()} for index, choice in enumerate(choices)]
        answer = head | {"choices": answers, "usage": generation.usage()}
        return json_response(answer | choices[0].prompt_fields())

    return router


async def _submit(
    service: Service, model: LoadedModel, body: ChatRequest, calling: Calling | None
) -> Generation:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs: only allowed where logprobs is true", "top_logprobs")
    try:
        return await _queue(service, model, body, calling)
    except ContextLengthError as exc:
        exc.param = "messages" if exc.param == "prompt" else exc.param
        raise


async def _queue(
    service: Service, model: LoadedModel, body: ChatRequest, calling: Calling | None
) -> Generation:
    check_num_sequences(body, 1, model.max_sequences)
    limits = [limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None]
    prompt = await chat_prompt(model, body, () if calling is None else calling.shown)
    requests = generation_requests(
        body,
        [prompt],
        continues_prompt=bool(body.continue_final_message),
        max_tokens=min(limits, default=None),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await (format_grammar(model, body) if calling is None else calling.grammar()),
    )
    if calling is not None:
        requests = [calling.constrained(request) for request in requests]
    return await Generation.submit(service, model, requests, body.num_choices)


async def _events(
    generation: Generation, writer: ChunkWriter, choices: list[_Choice]
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


class _Choice:
    """One of the answers while it is written. What tokens bring beside text waits for the next delta."""

    def __init__(
        self, model: LoadedModel, body: ChatRequest, request: GenerationRequest, answer: Answer
    ) -> None:
        self.started = False
        self.finish_reason: str | None = None
        self._prompt_scores: Sequence[TokenLogprobs | None] | None = None
        self._model = model
        self._body = body
        self._request = request
        self._answer = answer
        self._scores: list[TokenLogprobs] = []  # not taken yet
        self._token_ids: list[int] = []  # not taken yet

    def start(self) -> bytes:
        """Encoded delta of the first chunk."""
        self.started = True
        return b'"delta":' + encode_json(self._answer.start)

    def prompt_ids(self) -> bytes:
        """Encoded field with the prompt's ids, if the request wants them."""
        return prompt_token_ids(self._request.prompt) if self._body.return_token_ids else b""

    def push(self, event: TokenEvent) -> list[dict[str, Any]]:
        """Deltas that one event adds."""
        if event.prompt_logprobs is not None:
            self._prompt_scores = event.prompt_logprobs
        if event.token_id is not None:
            self._token_ids.append(event.token_id)
        has_token = event.token_id is not None and not self._model.only_ends(event, self._request)
        if event.logprobs is not None and has_token:
            self._scores.append(event.logprobs)
        deltas = self._answer.push(event, has_token=has_token)
        if event.finish_reason is not None:
            self.finish_reason = self._answer.finish_reason(event.finish_reason)
        return deltas

    def take_logprobs(self) -> bytes:
        """Encoded log probabilities of the tokens since the last call."""
        if not self._scores:
            return b"null"
        scores, self._scores = self._scores, []
        return encode_json(chat_logprobs(self._model.tokenizer, scores))

    def take_ids(self) -> bytes:
        """Encoded field with the ids of the tokens since the last call, if the request wants them."""
        if not self._body.return_token_ids:
            return b""
        ids, self._token_ids = self._token_ids, []
        return b',"token_ids":' + encode_json(ids)

    def answer(self) -> dict[str, Any]:
        """The choice of a plain answer, without its index."""
        body = self._body
        answer: dict[str, Any] = {
            "message": self._answer.message(),
            "logprobs": chat_logprobs(self._model.tokenizer, self._scores) if body.logprobs else None,
            "finish_reason": self.finish_reason,
        }
        if body.return_token_ids:
            answer["token_ids"] = self._token_ids
        return answer

    def prompt_fields(self) -> dict[str, Any]:
        """What a plain answer says about the prompt; only the first choice has its scores."""
        fields: dict[str, Any] = {}
        wanted = self._body.prompt_logprobs
        if wanted is not None and self._prompt_scores is not None:
            fields["prompt_logprobs"] = prompt_logprobs(self._model.tokenizer, self._prompt_scores, wanted)
        if self._body.return_token_ids:
            fields["prompt_token_ids"] = self._request.prompt
        return fields
