"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from flashlet.serving.api.body import json_route
from flashlet.serving.api.generation import Generation
from flashlet.serving.api.prompts import plain_prompts
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.embeddings import EmbeddingList, EmbeddingRequest
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.api.sse import cancel_on_disconnect
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.errors import ContextLengthError, InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = 32  # texts of one request that run or wait at a time, so that others get their turn


def embeddings_router(service: Service) -> APIRouter:
    """The endpoint for vectors."""
    router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["embeddings"])

    @router.post("/v1/embeddings", responses=responses(EmbeddingList))
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Turn texts into vectors of length 1 whose dot products say how alike the texts are.

        A vector is the mean of the model's final hidden states. A chat model was not trained for that:
        it will do for rough similarity, clustering and finding duplicates, not in place of a retrieval model.
        """
        model = service.model_for(body.model)
        hidden = model.config.hidden_size
        if body.dimensions is not None and body.dimensions > hidden:
            raise InvalidRequestError(
                f"dimensions: expected at most {hidden}, got {body.dimensions}", "dimensions"
            )
        try:
            requests = await _requests(model, body)
            vectors = await _embed(service, model, requests, request)
        except InvalidRequestError as exc:
            exc.param = "input" if exc.param == "prompt" else exc.param
            raise
        num_tokens = sum(len(item.prompt) for item in requests)
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": _on_the_wire(vector, body)}
                    for index, vector in enumerate(vectors)
                ],
                "model": body.model or service.config.model_names[0],
                "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            }
        )

    return router


async def _requests(model: LoadedModel, body: EmbeddingRequest) -> list[GenerationRequest]:
    """One request per text, all of them within the context."""
    add_special_tokens = body.add_special_tokens is not False
    prompts = await plain_prompts(model, body.inputs, add_special_tokens, body.truncate_prompt_tokens)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InvalidRequestError(f"input: expected at least one token, text {index} has none", "input")
        if len(prompt) > model.max_model_len:
            raise ContextLengthError(
                f"the longest text is {model.max_model_len} tokens; text {index} has {len(prompt)}", "input"
            )
    return [GenerationRequest(prompt, max_tokens=0, embed=True) for prompt in prompts]


async def _embed(
    service: Service, model: LoadedModel, requests: Sequence[GenerationRequest], http: Request
) -> list[NDArray[np.float64]]:
    """Mean hidden states of all texts, [hidden] each, a group at a time."""
    vectors: list[NDArray[np.float64]] = []
    for start in range(0, len(requests), GROUP):
        generation = await Generation.submit(service, model, requests[start : start + GROUP], 1)
        found: dict[int, NDArray[np.float64]] = {}
        async with cancel_on_disconnect(http.receive, generation.cancel):
            async for index, event in generation.events():
                if event.embedding is not None:
                    found[index] = event.embedding
        if len(found) < len(generation.requests):
            raise ClientDisconnect
        vectors += [found[index] for index in range(len(found))]
    return vectors


def _on_the_wire(vector: NDArray[np.float64], body: EmbeddingRequest) -> Any:
    """Cut to `dimensions`, normalized, as floats or as base64 of little-endian float32."""
    cut = vector[: body.dimensions]
    length = math.sqrt(math.fsum(cut * cut))
    unit = (cut / length if length else cut).astype("<f4")
    return base64.b64encode(unit.tobytes()).decode() if body.encoding_format == "base64" else unit.tolist()
