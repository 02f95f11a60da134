"""OpenAPI entries of the dialects' endpoints."""

from __future__ import annotations

from typing import Any

from flashlet.serving.api.responses import responses
from flashlet.serving.api.schema.base import AnswerModel
from flashlet.serving.api.schema.errors import ErrorBody

GENERATING_ERRORS = (400, 401, 404, 408, 413, 429, 500, 503)


def documented(
    answer: type[AnswerModel],
    event: type[AnswerModel] | None = None,
    errors: tuple[int, ...] = GENERATING_ERRORS,
    error: type[AnswerModel] = ErrorBody,
) -> dict[int | str, dict[str, Any]]:
    """As `responses`; `event`: what each named event of a stream holds, `error`: the body of errors."""
    entries = responses(answer, event, errors)
    for status in errors:
        schema = {"$ref": f"#/components/schemas/{error.__name__}"}
        entries[status]["content"] = {"application/json": {"schema": schema}}
    if event is not None:
        stream = entries[200]["content"]["text/event-stream"]
        stream["schema"]["description"] = f"Events named by their `type`, each a `{event.__name__}`."
    return entries
