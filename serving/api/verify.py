"""POST /v1/verify: replay a request, and say whether its answer is the recorded one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from flashlet.serving.api.body import json_route
from flashlet.serving.api.loaded_model import LoadedModel
from flashlet.serving.api.middleware import OwnRequests
from flashlet.serving.api.parameters import GREEDY_BELOW
from flashlet.serving.api.recorded_answer import Difference, RecordedAnswer, RecordedChoice, first_difference
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.verify import Verification, VerifyRequest
from flashlet.serving.api.service import Service
from flashlet.serving.api.sse import cancel_on_disconnect
from flashlet.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    import httpx

OBJECTS = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}
_HEADERS = {"retry-after", "retry-after-ms", "x-should-retry"}  # of a replay that was refused
_NOT_REPLAYED = {"stream", "stream_options", "max_ttft_ms", "deadline_ms"}


def verify_router(service: Service) -> APIRouter:
    """The endpoint for whoever doubts an answer."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["receipts"])

    @router.post("/v1/verify", responses=responses(Verification))
    async def verify_answer(body: VerifyRequest, request: Request) -> Response:
        """Run a request again and compare the answer with a recorded one."""
        model = service.ready_model()
        recorded = _recorded(body)
        response = await _replay(body, request)
        if response.status_code != 200:
            return _refusal(response)
        replay = msgspec.json.decode(response.content, type=RecordedAnswer)
        differing = model.fingerprint.differing(recorded.system_fingerprint or str(model.fingerprint))
        _check_belongs(recorded, replay, has_same_model=not differing)
        difference = _compare(model, body, recorded, replay)
        fingerprint = {
            "match": recorded.system_fingerprint is not None and not differing,
            "recorded": recorded.system_fingerprint,
            "server": model.system_fingerprint,
            "differing": differing,
        }
        return json_response(
            {"identical": difference is None, "first_difference": difference, "fingerprint": fingerprint}
        )

    return router


def _recorded(body: VerifyRequest) -> RecordedAnswer:
    """The recorded answer. Raises InvalidRequestError for what is no answer of the endpoint."""
    try:
        answer = msgspec.convert(body.answer, RecordedAnswer)
    except msgspec.ValidationError as exc:
        raise InvalidRequestError(f"answer: {exc}", "answer") from None
    if answer.object != OBJECTS[body.endpoint]:
        raise InvalidRequestError(
            f"answer.object: expected '{OBJECTS[body.endpoint]}' from {body.endpoint}, "
            f"got '{answer.object[:60]}'",
            "answer.object",
        )
    answer.choices.sort(key=lambda choice: choice.index)
    indices = [choice.index for choice in answer.choices]
    if indices != [*range(len(indices))]:
        raise InvalidRequestError(
            "answer.choices: expected the indices 0, 1, ..., each once", "answer.choices"
        )
    return answer


async def _replay(body: VerifyRequest, request: Request) -> httpx.Response:
    """What the endpoint answers now, with token ids. The answer cache does not see it."""
    import httpx  # not at the start: a tenth of a second

    fields = {name: value for name, value in body.request.items() if name not in _NOT_REPLAYED}
    fields |= {"return_token_ids": True} | _seed(body)
    transport = httpx.ASGITransport(OwnRequests(request.app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://replay", timeout=None) as client:
        task = asyncio.create_task(client.post(body.endpoint, content=msgspec.json.encode(fields)))

        def cancel() -> None:
            task.cancel()

        async with cancel_on_disconnect(request.receive, cancel):
            await asyncio.wait({task})
    if task.cancelled():
        raise ClientDisconnect
    return task.result()


def _seed(body: VerifyRequest) -> dict[str, int]:
    """The request's seed. Raises InvalidRequestError if it is not known, or known twice."""
    own, temperature = body.request.get("seed"), body.request.get("temperature")
    if body.seed is not None and own not in (None, body.seed):
        raise InvalidRequestError(f"seed: the request has its own, {own}; got {body.seed}", "seed")
    if body.seed is not None:
        return {"seed": body.seed - 2**64 if body.seed >= 2**63 else body.seed}
    is_greedy = isinstance(temperature, (int, float)) and temperature < GREEDY_BELOW
    if own is None and not is_greedy:
        raise InvalidRequestError(
            "seed: a sampled answer is only given again with its seed, which its header x-flashlet-seed has",
            "seed",
        )
    return {}


def _refusal(response: httpx.Response) -> Response:
    """The endpoint's own error, with the field as it is called here."""
    content: dict[str, Any] = msgspec.json.decode(response.content)
    error = content["error"]
    if response.status_code == 400:
        error["param"] = f"request.{error['param']}" if error["param"] else "request"
    headers = {name: value for name, value in response.headers.items() if name in _HEADERS}
    return Response(msgspec.json.encode(content), response.status_code, headers, "application/json")


def _check_belongs(recorded: RecordedAnswer, replay: RecordedAnswer, *, has_same_model: bool) -> None:
    """Raise InvalidRequestError for an answer to another request."""
    if len(recorded.choices) != len(replay.choices):
        raise InvalidRequestError(
            f"answer.choices: expected {len(replay.choices)} as the request asks for, "
            f"got {len(recorded.choices)}",
            "answer.choices",
        )
    if recorded.usage is None or replay.usage is None or not has_same_model:
        return
    expected, got = replay.usage.prompt_tokens, recorded.usage.prompt_tokens
    if expected != got:
        raise InvalidRequestError(
            f"answer.usage.prompt_tokens: expected {expected} as the request has, got {got}: "
            "the answer belongs to another request",
            "answer.usage.prompt_tokens",
        )


def _compare(
    model: LoadedModel, body: VerifyRequest, recorded: RecordedAnswer, replay: RecordedAnswer
) -> Difference | None:
    """The first difference in the first choice that has one."""
    is_chat = body.endpoint == "/v1/chat/completions"
    continuation = not is_chat or bool(body.request.get("continue_final_message"))
    has_echo = bool(body.request.get("echo"))

    def token_at(choice: RecordedChoice, text: str, character: int) -> int | None:
        return None if has_echo else _token_at(model, choice.token_ids or [], continuation, text, character)

    for expected, got in zip(recorded.choices, replay.choices, strict=True):
        difference = first_difference(expected, got, token_at)
        if difference is not None:
            return {"choice": expected.index, **difference}
    return None


def _token_at(
    model: LoadedModel, token_ids: list[int], continuation: bool, text: str, character: int
) -> int | None:
    """Index of the token that brings a character of `text`; null if `text` is not what the tokens say."""
    decoder = model.tokenizer.stream_decoder(continuation=continuation)
    pieces = [decoder.push(token_id) for token_id in token_ids]
    before = "".join(pieces).find(text)
    if before < 0:
        return None
    length = 0
    for index, piece in enumerate(pieces):
        length += len(piece)
        if length > before + character:
            return index
    return len(token_ids)
