"""The OpenAPI document: what FastAPI finds out by itself, completed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from flashlet.serving.api.attempt import MAX_KEY_CHARACTERS
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.middleware import OPEN_PATHS

DESCRIPTION = """\
An OpenAI-compatible server for small quantized language models.

* A field that is not listed is refused with 400 and named in `param`; `null` is the same as no field.
* Every error has the body `ErrorBody` (under /v1/messages `MessageErrorBody`). Every answer has a header
  `x-request-id`: the client's or a new one.
* With `stream: true` an answer comes as server-sent events: `data:` lines of JSON, one per token, and
  `data: [DONE]` at the end; comment lines (`:`) break long silences. What fails before the first token
  is an ordinary error, what fails later an event with `error`. /v1/responses and /v1/messages name their
  events and send no `[DONE]`.
"""
TAGS = {
    "chat": "Conversations.",
    "responses": "Conversations that the server keeps.",
    "messages": "Conversations in Anthropic's dialect.",
    "completions": "Plain text, and scores of given text.",
    "embeddings": "Vectors of texts.",
    "streams": "Streams that were cut.",
    "estimate": "What a request would cost in time.",
    "receipts": "What an answer was made with, and whether it can be had again.",
    "models": "What is served.",
    "tokenizer": "Text to token ids and back.",
    "files": "Input and output of batches.",
    "batches": "Many requests in one file, run beside the live ones.",
    "server": "For whoever watches the server.",
}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this server."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
}
HEADERS: dict[str, Any] = {
    "x-request-id": {"description": "Names the request in logs.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds until another try makes sense.", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
    "x-should-retry": {
        "description": "Whether another try can succeed, for the OpenAI SDKs.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
}
ANSWER_HEADERS: dict[str, Any] = {
    "x-flashlet-seed": {
        "description": "The seed of the first choice, with which the answer can be had again.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-flashlet-cache": {
        "description": "Present if the answer comes from the answer cache.",
        "schema": {"type": "string", "enum": ["hit"]},
    },
}
WITH_SEED = {"/v1/chat/completions", "/v1/completions", "/v1/messages"}
RETRYABLE = WITH_SEED | {"/v1/responses"}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Requests with the same key are retries of the first one and get its answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
}
RETRIED = {"429", "500", "503"}
SCHEMAS = "#/components/schemas/"


def add_document(api: FastAPI, config: ServerConfig) -> None:
    """Let `api` serve the completed document, made when it is first asked for."""
    original = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            _complete(original(), config)
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], config: ServerConfig) -> None:
    """Add what FastAPI cannot know: keys, headers, and the schemas that only descriptions name."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own answers, which are never sent
        schemas.pop(name, None)
    schemas |= _further_schemas()
    components["securitySchemes"] = SECURITY_SCHEMES
    components["headers"] = HEADERS | ANSWER_HEADERS
    used: set[str] = set()
    for path, operation in _operations(document):
        operation["responses"].pop("422", None)
        for status, response in operation["responses"].items():
            names = list(HEADERS) if status in RETRIED else ["x-request-id"]
            if status == "200" and path in WITH_SEED:
                names += ANSWER_HEADERS
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        if path in RETRYABLE:
            operation["parameters"] = [*operation.get("parameters", ()), IDEMPOTENCY_KEY]
        if path not in OPEN_PATHS:
            keys: list[dict[str, list[str]]] = [{name: []} for name in SECURITY_SCHEMES]
            operation["security"] = keys if config.api_keys else [*keys, {}]
        operation["tags"] = list(dict.fromkeys(operation["tags"]))  # nested routers repeat theirs
        used.update(operation["tags"])
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _further_schemas() -> dict[str, Any]:
    from flashlet.serving.api.schema.chat import ChatChunk
    from flashlet.serving.api.schema.completions import Completion
    from flashlet.serving.api.schema.errors import ErrorBody
    from flashlet.serving.api.schema.message_answer import MessageErrorBody, MessageEvent
    from flashlet.serving.api.schema.response_object import ResponseEvent

    further = ChatChunk, Completion, ErrorBody, ResponseEvent, MessageEvent, MessageErrorBody
    models = [(model, "serialization") for model in further]
    _, document = models_json_schema(models, ref_template=SCHEMAS + "{model}")  # type: ignore[arg-type]
    found: dict[str, Any] = document["$defs"]
    return found
