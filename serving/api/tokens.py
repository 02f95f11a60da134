"""POST /tokenize, POST /detokenize and GET /tokenizer_info."""

from __future__ import annotations

from fastapi import APIRouter, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.prompts import off_loop
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.tokens import (
    DetokenizedText,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from flashlet.serving.api.service import Service
from flashlet.serving.errors import InvalidRequestError

ERRORS = (400, 401, 404, 408, 413, 500, 503)


def tokens_router(service: Service) -> APIRouter:
    """The tokenizer's endpoints."""
    router = APIRouter(tags=["tokenizer"])
    json_router = APIRouter(route_class=json_route(service.config.max_body_bytes), tags=["tokenizer"])

    @json_router.post("/tokenize", responses=responses(Tokens, errors=ERRORS))
    async def tokenize(body: TokenizeRequest) -> Response:
        """Turn text into token ids."""
        model = service.model_for(body.model)
        special = body.add_special_tokens is not False
        ids = await off_loop(len(body.prompt), lambda: model.tokenizer.encode(body.prompt, special))
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": model.max_model_len})

    @json_router.post("/detokenize", responses=responses(DetokenizedText, errors=ERRORS))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Turn token ids into text."""
        model = service.model_for(body.model)
        largest = max(body.tokens, default=0)
        if largest >= model.config.vocab_size:
            raise InvalidRequestError(
                f"tokens: expected ids below the vocabulary size {model.config.vocab_size}, got {largest}",
                "tokens",
            )
        text = await off_loop(len(body.tokens), lambda: model.tokenizer.decode(body.tokens, False))
        return json_response({"prompt": text})

    @router.get("/tokenizer_info", responses=responses(TokenizerInfo, errors=(401, 500, 503)))
    async def tokenizer_info() -> Response:
        """Describe the tokenizer: its special tokens and chat template."""
        model = service.ready_model()
        tokenizer = model.tokenizer
        return json_response(
            {
                "bos_token": tokenizer.bos_token,
                "eos_token": tokenizer.eos_token,
                "pad_token": tokenizer.pad_token,
                "chat_template": tokenizer.chat_template,
                "vocab_size": tokenizer.vocab_size,
                "max_model_len": model.max_model_len,
            }
        )

    router.include_router(json_router)
    return router
