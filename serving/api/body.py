"""Request bodies: read within limits of size and time, decoded as strict JSON whatever the content type."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive

from flashlet.serving.api.errors import BodyTimeoutError, BodyTooLargeError
from flashlet.serving.errors import InvalidRequestError

BODY_TIMEOUT = 30.0  # seconds for the whole body
MAX_FIELDS = 1024  # of any object: each unknown one costs time before the body is refused
MAX_VALUES = 100_000  # in the whole body; plain values in lists, such as token ids, do not count

Handler = Callable[["JSONRequest"], Awaitable[Response]]


class JSONRequest(Request):
    """A request whose body is JSON."""

    raw: bytes  # the body as it came; here after `load`, like the next
    decoded: dict[str, Any]

    async def load(self, max_bytes: int) -> None:
        """Read and decode the body.

        Raises:
            BodyTooLargeError: announced or actual size over `max_bytes`; the rest is not kept.
            BodyTimeoutError: the client stalls.
            InvalidRequestError: not JSON; jiter refuses NaN, invalid UTF-8 and nesting over 200 levels.
        """
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise BodyTooLargeError(f"body: expected at most {max_bytes} bytes, got {length}")
        try:
            self.raw = await asyncio.wait_for(self._read(max_bytes), BODY_TIMEOUT)
        except asyncio.TimeoutError:
            raise BodyTimeoutError(f"the body did not arrive within {BODY_TIMEOUT:.0f} seconds") from None
        self.decoded = decode_json(self.raw)

    def heard_by(self, receive: Receive) -> JSONRequest:
        """The same request with another source of what comes after the body."""
        other = JSONRequest(self.scope, receive)
        other.raw, other.decoded = self.raw, self.decoded
        return other

    async def _read(self, max_bytes: int) -> bytes:
        body = bytearray()
        async for part in self.stream():
            body += part
            if len(body) > max_bytes:
                raise BodyTooLargeError(f"body: expected at most {max_bytes} bytes, got more")
        return bytes(body)

    async def body(self) -> bytes:
        """The body as it came."""
        return self.raw

    async def json(self) -> Any:
        """The decoded body; FastAPI validates it."""
        return self.decoded


def decode_json(body: bytes) -> dict[str, Any]:
    """Decode a JSON object. Raises InvalidRequestError otherwise."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidRequestError(f"body: expected JSON: {exc}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("body: expected a JSON object", code="invalid_json")
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Raise InvalidRequestError for what would take long to validate."""
    open_values, num_values = [value], 0
    while open_values:
        value = open_values.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            raise InvalidRequestError(f"body: expected at most {MAX_VALUES} values, got more")
        if isinstance(value, dict):
            if len(value) > MAX_FIELDS:
                raise InvalidRequestError(
                    f"body: expected objects of at most {MAX_FIELDS} fields, got {len(value)}"
                )
            open_values += value.values()
        elif isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            open_values += value


def json_route(
    max_bytes: int, answer: Callable[[JSONRequest, Handler], Awaitable[Response]] | None = None
) -> type[APIRoute]:
    """Route class whose requests are JSON of at most `max_bytes`, with any content type.

    `answer` may answer a request without the endpoint, its `Handler`; see `Answering.answer`.
    """

    class JSONRoute(APIRoute):
        """Loads the body before FastAPI asks for it."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                headers = [item for item in request.scope["headers"] if item[0] != b"content-type"]
                request.scope["headers"] = [*headers, (b"content-type", b"application/json")]
                json_request = JSONRequest(request.scope, request.receive)
                await json_request.load(max_bytes)
                return await (answer(json_request, handler) if answer else handler(json_request))

            return handle

    return JSONRoute
