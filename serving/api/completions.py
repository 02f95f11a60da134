"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.chunks import ChunkWriter, answer_head, encode_json
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.logprobs import LegacyLogprobs
from flashlet.serving.api.parameters import check_num_sequences, generation_requests
from flashlet.serving.api.prompts import plain_prompts
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.completions import Completion, CompletionRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.errors import InvalidRequestError

DEFAULT_MAX_TOKENS = 16  # as OpenAI's


def completions_router(service: Service) -> APIRouter:
    """The legacy endpoint."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["completions"])

    @router.post("/v1/completions", responses=responses(Completion, Completion))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue one or more prompts."""
        model = service.model_for(body.model)
        generation = await _submit(service, model, body)
        head = answer_head("text_completion", "cmpl-", body, service, model)
        prompts = body.prompts
        choices = [
            _Choice(model, body, sequence, prompts[index // body.num_choices])
            for index, sequence in enumerate(generation.requests)
        ]
        if body.stream:
            writer = ChunkWriter(head, body, generation)
            return EventStream(_events(generation, writer, choices), generation.cancel)
        async with cancel_on_disconnect(request.receive, generation.cancel):
            async for index, event in generation.events():
                choices[index].add(event)
        answers = [{"index": index, **choice.answer()} for index, choice in enumerate(choices)]
        return json_response(head | {"choices": answers, "usage": generation.usage()})

    return router


async def _submit(service: Service, model: LoadedModel, body: CompletionRequest) -> Generation:
    if body.best_of not in {None, body.num_choices}:
        raise InvalidRequestError(f"best_of: expected n ({body.num_choices}), got {body.best_of}", "best_of")
    check_num_sequences(body, len(body.prompts), model.max_sequences)
    prompts = await plain_prompts(model, body.prompts, body.add_special_tokens is not False)
    requests = generation_requests(
        body,
        prompts,
        continues_prompt=True,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    return await Generation.submit(service, model, requests, body.num_choices)


async def _events(
    generation: Generation, writer: ChunkWriter, choices: list[_Choice]
) -> AsyncIterator[bytes]:
    """Encoded chunks: one per token, then the finish reason, and the usage at the end."""
    async for index, event in generation.events():
        text, logprobs = choices[index].delta(event)
        chunk = b""
        if text or logprobs is not None or not choices[index].only_ends(event):
            scores = b"null" if logprobs is None else encode_json(logprobs)
            chunk = writer.chunk(index, b'"text":' + encode_json(text), scores)
        if event.finish_reason is not None:
            chunk += writer.chunk(index, b'"text":""', finish=event.finish_reason)
        yield chunk
    yield writer.ending()


class _Choice:
    """One answer while it is written, with the prompt before it if `echo` asks for that."""

    def __init__(
        self,
        model: LoadedModel,
        body: CompletionRequest,
        sequence: GenerationRequest,
        prompt: str | list[int],
    ) -> None:
        self._sequence = sequence
        self._model = model
        self._echo = ""  # what the next text starts with
        if body.echo:
            self._echo = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, False)
        self._logprobs = LegacyLogprobs(model.tokenizer) if body.logprobs is not None else None
        self._text: list[str] = []
        self._finish_reason: str | None = None

    def delta(self, event: TokenEvent) -> tuple[str, dict[str, list[Any]] | None]:
        """Text and log probabilities that one event adds."""
        text = self._score(event)
        new = self._logprobs.take() if self._logprobs is not None else None
        return text, new if new is not None and new["tokens"] else None

    def only_ends(self, event: TokenEvent) -> bool:
        """Whether the event brings no token that belongs to the answer."""
        return event.token_id is None or self._model.only_ends(event, self._sequence)

    def add(self, event: TokenEvent) -> None:
        """Collect one event for `answer`."""
        self._text.append(self._score(event))
        self._finish_reason = event.finish_reason

    def answer(self) -> dict[str, Any]:
        """The choice of a plain answer, without its index."""
        return {
            "text": "".join(self._text),
            "logprobs": None if self._logprobs is None else self._logprobs.take(),
            "finish_reason": self._finish_reason,
        }

    def _score(self, event: TokenEvent) -> str:
        """Note the event's log probabilities; returns its text, after the prompt's if that is due."""
        text, self._echo = self._echo + event.text, ""
        if self._logprobs is not None:
            for position, score in enumerate(event.prompt_logprobs or ()):
                token_id = self._sequence.prompt[position]
                self._logprobs.add(token_id, score, in_text=position > 0 or self._starts_text(token_id, text))
            if event.token_id is not None:
                hidden = event.token_id in self._model.tokenizer.special_ids
                in_text = not hidden and not self.only_ends(event)
                self._logprobs.add(event.token_id, event.logprobs, in_text)
        return text

    def _starts_text(self, token_id: int, text: str) -> bool:
        """Whether the prompt's first token is in its text: a BOS that the tokenizer added is not."""
        assert self._logprobs is not None
        bos = self._model.tokenizer.bos_token
        return bos is None or text.startswith(bos) or self._logprobs.text_of(token_id) != bos
