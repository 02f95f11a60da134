"""Plain JSON answers, and how answers and errors are documented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Response

from flashlet.serving.api.schema.base import AnswerModel

_SCHEMAS = "#/components/schemas/"
_ERRORS = {
    400: "The request is malformed or unsupported; `param` names the field",
    401: "No valid key",
    404: "The model is not served, or nothing is stored under the id",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The queue is full; `retry-after-ms` says when to try again",
    500: "The engine failed; `x-should-retry` says whether another try can succeed",
    503: "The model is loading, the server is shutting down, or a time limit cannot be kept",
}


def json_response(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A 200 with a JSON body."""
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of errors."""
    # By reference, because FastAPI builds a validator wherever a model is given.
    content = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}ErrorBody"}}}
    return {status: {"content": content, "description": _ERRORS[status]} for status in statuses}


def responses(
    answer: type[AnswerModel],
    chunk: type[AnswerModel] | None = None,
    errors: tuple[int, ...] = tuple(_ERRORS),
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of an endpoint. `chunk`: what each `data:` event of a streamed answer holds."""
    documented = error_responses(*errors)
    documented[200] = {"model": answer, "description": "The answer"}
    if chunk is not None:
        documented[200]["content"] = {"text/event-stream": _events(chunk)}
    return documented


def stream_responses(
    chunk: type[AnswerModel], errors: tuple[int, ...] = (400, 401, 404, 500, 503)
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of an endpoint whose answer is always a stream."""
    content = {"text/event-stream": _events(chunk)}
    return error_responses(*errors) | {200: {"content": content, "description": "The events"}}


def _events(chunk: type[AnswerModel]) -> dict[str, Any]:
    """Describe a stream: OpenAPI 3.1 has no words for the items of one, and checkers disagree on its type."""
    return {
        "schema": {
            "description": f"Events `data: {{...}}`, each a `{chunk.__name__}`, then `data: [DONE]`.",
        },
        "x-event-schema": {"$ref": f"{_SCHEMAS}{chunk.__name__}"},
    }
