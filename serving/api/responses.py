"""Plain JSON answers, and how answers and errors are documented."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

from flashlet.serving.api.schema.base import AnswerModel
from flashlet.serving.api.schema.errors import ErrorBody

_ERRORS = {
    400: "The request is malformed or unsupported; `param` names the field",
    401: "No valid key",
    404: "The model is not served, or nothing is stored under the id",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The queue is full; `retry-after-ms` says when to try again",
    500: "The engine failed",
    503: "The model is loading, or the server is shutting down",
}


def json_response(content: Any) -> Response:
    """A 200 with a JSON body."""
    return Response(msgspec.json.encode(content), media_type="application/json")


def responses(
    answer: type[AnswerModel],
    chunk: type[AnswerModel] | None = None,
    errors: tuple[int, ...] = tuple(_ERRORS),
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of an endpoint. `chunk`: what each `data:` event of a streamed answer holds."""
    # Only the default names the model, because FastAPI builds a validator wherever one does.
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    documented: dict[int | str, dict[str, Any]] = {
        status: {"content": content, "description": _ERRORS[status]} for status in errors
    }
    documented["default"] = {"model": ErrorBody, "description": "Any other error"}
    documented[200] = {"model": answer, "description": "The answer"}
    if chunk is not None:
        schema = {"type": "string", "description": f"`data:` events, each a {chunk.__name__}, then `[DONE]`."}
        documented[200]["content"] = {"text/event-stream": {"schema": schema}}
    return documented
