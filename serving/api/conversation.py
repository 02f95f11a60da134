"""A conversation that the engine continues, below the dialect in which the client asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashlet.serving.api.generation import Generation
from flashlet.serving.api.parameters import check_num_sequences, generation_requests
from flashlet.serving.api.prompts import chat_prompt
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.structured import format_grammar
from flashlet.serving.api.tools.answer import Answer
from flashlet.serving.api.tools.calling import Calling
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.errors import ContextLengthError


@dataclass(frozen=True, slots=True)
class Conversation:
    """Sequences that are queued or run, and an answer for each, which takes their events."""

    generation: Generation
    answers: Sequence[Answer]

    @classmethod
    async def submit(
        cls, service: Service, model: LoadedModel, body: ChatRequest, *, cut_at_context: bool = False
    ) -> Conversation:
        """Queue what `body` asks for. `cut_at_context`: token limits beyond the context are no error.

        Raises:
            RequestError: it cannot be served; an InvalidRequestError names the field of `body`.
            ChatTemplateError: the template refuses the messages.
        """
        calling = Calling.of(body, model)
        try:
            requests = await _requests(model, body, calling, cut_at_context)
            generation = await Generation.submit(service, model, requests, body.num_choices)
        except ContextLengthError as exc:
            exc.param = "messages" if exc.param == "prompt" else exc.param
            raise
        return cls(generation, [Answer() if calling is None else calling.answer() for _ in requests])


async def conversation_prompt(model: LoadedModel, body: ChatRequest) -> tuple[int, ...]:
    """Token ids of what the model would read. Raises what `Conversation.submit` raises."""
    calling = Calling.of(body, model)
    return await chat_prompt(model, body, () if calling is None else calling.shown)


async def conversation_requests(
    model: LoadedModel, body: ChatRequest, *, cut_at_context: bool = False
) -> list[GenerationRequest]:
    """What `Conversation.submit` would queue. Raises what it raises before it does."""
    return await _requests(model, body, Calling.of(body, model), cut_at_context)


async def _requests(
    model: LoadedModel, body: ChatRequest, calling: Calling | None, cut_at_context: bool
) -> list[GenerationRequest]:
    check_num_sequences(body, 1, model.max_sequences)
    limits = [limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None]
    prompt = await chat_prompt(model, body, () if calling is None else calling.shown)
    if cut_at_context:
        limits.append(max(1, model.max_model_len - len(prompt)))
    requests = generation_requests(
        body,
        [prompt],
        continues_prompt=bool(body.continue_final_message),
        max_tokens=min(limits, default=None),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await (format_grammar(model, body) if calling is None else calling.grammar()),
    )
    return requests if calling is None else [calling.constrained(request) for request in requests]
