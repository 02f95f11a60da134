"""Pure ASGI middleware: request ids, keys and HEAD. None touches the chunks of a stream."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashlet.serving.api.errors import AuthenticationError, error_response

OPEN_PATHS = {"/health"}
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def new_request_id() -> bytes:
    """A fresh value for `x-request-id`."""
    return b"req_" + secrets.token_hex(12).encode()


class RequestIds:
    """Puts `x-request-id` on every response: the client's own if it is sane, else a fresh one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given if _SANE_ID.fullmatch(given) else new_request_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class ApiKeys:
    """Asks for a key, as `Authorization: Bearer` or `x-api-key`, on every path but the open ones."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admit(scope):
            refusal = error_response(
                AuthenticationError("expected a valid API key in 'Authorization: Bearer' or 'x-api-key'")
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> bool:
        """Whether a given key is valid, in a time that does not depend on how much of it is right."""
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        valid = [
            key
            for one in given
            if one
            for key in self._keys
            if hmac.compare_digest(one.encode("latin-1"), key)
        ]
        if valid:
            scope.setdefault("state", {})["owner"] = hashlib.sha256(valid[0]).hexdigest()[:32]
        return bool(valid)


def owner_of(request: Request) -> str:
    """Who owns what this request stores: a digest of its key; empty where no key is asked for."""
    return str(getattr(request.state, "owner", ""))


class OwnRequests:
    """Marks the requests that this server makes itself: they neither join others nor are joined."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await self._app({**scope, "state": {"is_own": True}}, receive, send)


def is_own(request: Request) -> bool:
    """Whether this server made the request itself."""
    return bool(getattr(request.state, "is_own", False))


class HeadRequests:
    """Answers HEAD, which health checks send, like GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)
