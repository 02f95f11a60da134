"""Errors of /v1/messages in Anthropic's shape."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/v1/messages"
_JSON = (b"content-type", b"application/json")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def message_error(status: int, message: str, request_id: str | None = None) -> dict[str, Any]:
    """The body of an error, or the data of an `error` event."""
    error = {"type": _TYPES.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


class MessageErrors:
    """Rewrites the errors under /v1/messages, wherever they come from, and repeats `x-request-id` as the
    header `request-id`. It has to stand outside of what makes request ids.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == PATH or path.startswith(PATH + "/")):
            send = _Rewriting(send)
        await self._app(scope, receive, send)


class _Rewriting:
    """Holds the head of an error back until its body is there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None  # of an error
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"]]
            headers += [(b"request-id", value) for name, value in headers if name == b"x-request-id"]
            message = {**message, "headers": headers}
            if message["status"] >= 400 and _JSON in headers:  # a refused CORS preflight is plain text
                self._head = message
                return
        elif self._head is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            await self._send_error(self._head)
            return
        await self._send(message)

    async def _send_error(self, head: Message) -> None:
        request_id = dict(head["headers"]).get(b"request-id", b"").decode()
        text = msgspec.json.decode(self._body)["error"]["message"]
        body = msgspec.json.encode(message_error(head["status"], text, request_id))
        headers = [item for item in head["headers"] if item[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({**head, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
