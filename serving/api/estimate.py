"""POST /v1/estimate: what a request would cost in time, without running it."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.completions import completion_requests
from flashlet.serving.api.conversation import conversation_requests
from flashlet.serving.api.dialects import message_request, response_request
from flashlet.serving.api.dialects.renaming import fields_renamed
from flashlet.serving.api.dialects.response_items import normal_items
from flashlet.serving.api.dialects.responses import history_of
from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.schema.estimate import (
    ChatEstimate,
    CompletionEstimate,
    EstimateAnswer,
    EstimateRequest,
    MessagesEstimate,
    ResponseEstimate,
)
from flashlet.serving.api.service import Service
from flashlet.serving.engine.estimator import Estimate

CHAT_NAMES = {"prompt": "messages"}  # of the engine's fields, in a chat request


def estimate_router(service: Service) -> APIRouter:
    """The endpoint that predicts."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["estimate"])

    @router.post("/v1/estimate", responses=responses(EstimateAnswer))
    async def estimate(body: EstimateRequest, request: Request) -> Response:
        """Predict when a request would get its first token and its end. Generates nothing.

        The body is that of the endpoint, and `endpoint`. The prediction comes from measured times of steps
        and from what runs and waits now; `flashlet:estimate_error_ratio` in /metrics says how good such
        predictions were.
        """
        model = service.model_for(body.model)
        if isinstance(body, CompletionEstimate):
            requests = await completion_requests(model, body)
            num_choices, estimates = body.num_choices, model.engine_loop.estimate(requests)
        else:
            chat, names = await _conversation(service, body, owner_of(request))
            with fields_renamed(names), fields_renamed(CHAT_NAMES):
                cut = isinstance(body, MessagesEstimate)
                requests = await conversation_requests(model, chat, cut_at_context=cut)
                num_choices, estimates = chat.num_choices, model.engine_loop.estimate(requests)
        return json_response(_answer(estimates, num_choices))

    return router


async def _conversation(
    service: Service, body: ChatEstimate | ResponseEstimate | MessagesEstimate, owner: str
) -> tuple[ChatRequest, Mapping[str, str]]:
    """The conversation that a body asks for, and what its fields are called there."""
    if isinstance(body, ChatEstimate):
        return body, {}
    if isinstance(body, MessagesEstimate):
        return message_request.chat_request(body)
    response_request.check_request(body)
    history = await history_of(service.responses, body, owner)
    return response_request.chat_request(body, history, normal_items(body.input))


def _answer(estimates: list[Estimate], num_choices: int) -> dict[str, object]:
    """All sequences together; a prompt counts once, however many choices it has."""
    ttfts = [one.ttft_ms for one in estimates if one.ttft_ms is not None]
    totals = [one.total_ms for one in estimates if one.total_ms is not None]
    return {
        "object": "estimate",
        "prompt_tokens": sum(one.prompt_tokens for one in estimates[::num_choices]),
        "cached_tokens": sum(one.cached_tokens for one in estimates[::num_choices]),
        "output_tokens": round(sum(one.output_tokens for one in estimates)),
        "queue_position": estimates[0].queue_position,
        "ttft_ms": round(min(ttfts), 1) if ttfts else None,
        "total_ms": round(max(totals), 1) if totals else None,
    }
