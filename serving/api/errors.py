"""The one table from exceptions to HTTP status, error type and code, and the errors that only HTTP knows.

RequestError (flashlet.serving.errors)
├── AuthenticationError    no key, or an unknown one
├── UnknownModelError      the requested model is not served
├── ModelLoadingError      the weights are not in memory yet
├── BodyTooLargeError      the body is over the limit
└── BodyTimeoutError       the body did not arrive in time
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from flashlet.model.errors import ChatTemplateError
from flashlet.serving.api.validation import first_problem
from flashlet.serving.errors import (
    CanaryError,
    DataFolderError,
    DeadlineError,
    EngineDeadError,
    EngineFailedError,
    EngineStoppedError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    RequestError,
)


class AuthenticationError(RequestError):
    """The request carries no valid key."""


class UnknownModelError(RequestError):
    """The model is not served; the message names those that are."""


class ModelLoadingError(RequestError):
    """The model is still being loaded."""


class BodyTooLargeError(RequestError):
    """The body exceeds the limit, which the message gives in bytes."""


class BodyTimeoutError(RequestError):
    """The client did not send the whole body in time."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one exception class looks on the wire."""

    status: int
    type: str
    code: str | None
    param: str | None = None
    retry: bool | None = None  # x-should-retry; None: the status says enough


_BAD_REQUEST = "invalid_request_error"
TABLE: dict[type[Exception], ErrorKind] = {
    InvalidRequestError: ErrorKind(400, _BAD_REQUEST, "invalid_value"),
    ChatTemplateError: ErrorKind(400, _BAD_REQUEST, "invalid_chat_template_input", "messages"),
    ClientDisconnect: ErrorKind(400, _BAD_REQUEST, "client_disconnected"),
    AuthenticationError: ErrorKind(401, _BAD_REQUEST, "invalid_api_key"),
    UnknownModelError: ErrorKind(404, _BAD_REQUEST, "model_not_found", "model"),
    NotFoundError: ErrorKind(404, _BAD_REQUEST, "not_found", "id"),
    BodyTimeoutError: ErrorKind(408, _BAD_REQUEST, "request_timeout"),
    BodyTooLargeError: ErrorKind(413, _BAD_REQUEST, "request_too_large"),
    QueueFullError: ErrorKind(429, "rate_limit_error", "queue_full", retry=True),
    DeadlineError: ErrorKind(503, "server_error", "deadline_unreachable", retry=True),
    CanaryError: ErrorKind(503, "server_error", "canary_mismatch", retry=False),
    EngineDeadError: ErrorKind(500, "server_error", "engine_failed", retry=False),
    EngineFailedError: ErrorKind(500, "server_error", "engine_failed", retry=True),
    DataFolderError: ErrorKind(503, "server_error", "data_folder_unavailable", retry=False),
    EngineStoppedError: ErrorKind(503, "server_error", "shutting_down", retry=True),
    ModelLoadingError: ErrorKind(503, "server_error", "model_loading", retry=True),
    Exception: ErrorKind(500, "server_error", "internal_error"),
}
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}  # raised by the router
_RETRY_AFTER = {503: 1.0}  # seconds, where the exception gives no estimate


def error_kind(exc: Exception) -> ErrorKind:
    """Look the exception up in the table, most derived class first."""
    if isinstance(exc, HTTPException):
        return ErrorKind(exc.status_code, _BAD_REQUEST, _HTTP_CODES.get(exc.status_code))
    return next(TABLE[cls] for cls in type(exc).__mro__ if cls in TABLE)


def error_body(exc: Exception) -> dict[str, Any]:
    """The `{"error": {...}}` object, for plain answers and for streams."""
    if isinstance(exc, RequestValidationError):
        exc = first_problem(exc)
    kind = error_kind(exc)
    known = isinstance(exc, (InvalidRequestError, HTTPException)) or kind.code != "internal_error"
    message = getattr(exc, "detail", None) or str(exc) if known else "internal server error"
    param = getattr(exc, "param", None) or kind.param
    code = getattr(exc, "code", None) or kind.code
    return {"error": {"message": message, "type": kind.type, "param": param, "code": code}}


def error_response(exc: Exception) -> Response:
    """Answer a request that failed before its first byte went out."""
    if isinstance(exc, RequestValidationError):
        exc = first_problem(exc)
    kind = error_kind(exc)
    headers = dict(getattr(exc, "headers", None) or {})
    if kind.status == 408:
        headers["connection"] = "close"
    if kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    if kind.retry is not None:
        headers["x-should-retry"] = str(kind.retry).lower()
    retry_after = getattr(exc, "retry_after", _RETRY_AFTER.get(kind.status))
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after * 1000)))
    body = msgspec.json.encode(error_body(exc))
    return Response(body, kind.status, headers, media_type="application/json")
