"""Server-sent events, written straight to ASGI: no task and no object per token."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from flashlet.serving.api.errors import error_body, error_kind

KEEPALIVE = 9.0  # seconds of silence after which a comment is sent
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

logger = logging.getLogger(__name__)


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """Call `cancel` if the client leaves while the block runs."""

    async def watch() -> None:
        await disconnected(receive)
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class EventStream(Response):
    """Streams encoded events. The status waits for the first one, so that earlier failures get their own."""

    media_type = "text/event-stream"
    ending = DONE

    def __init__(
        self,
        events: AsyncIterator[bytes],
        cancel: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> None:
        """`resume_id`: under which a client may ask for the rest of a stream that was cut."""
        super().__init__()
        self.raw_headers = [*HEADERS, *_encoded(headers)]
        self.events = events
        self.cancel = cancel
        self.resume_id = resume_id
        self._started = False
        self._last_write = 0.0

    def reading(
        self,
        events: AsyncIterator[bytes],
        cancel: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> EventStream:
        """The same answer to another client, with further headers."""
        other = copy.copy(self)
        other.events, other.cancel = events, cancel
        other.raw_headers = [*self.raw_headers, *_encoded(headers)]
        return other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write events until they end or the client leaves."""
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        watcher = loop.create_task(self._watch(receive, send))
        try:
            async for event in self.events:
                self._last_write = loop.time()
                if not self._started:
                    await self._start(send)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as exc:
            if not self._started:
                raise
            if error_kind(exc).code == "internal_error":
                logger.exception("a stream failed")
            await send({"type": "http.response.body", "body": self.failure(exc), "more_body": True})
        finally:
            watcher.cancel()
            self.cancel()
        if not self._started:
            await self._start(send)
        await send({"type": "http.response.body", "body": self.ending, "more_body": False})

    def failure(self, exc: Exception) -> bytes:
        """The event of an error behind the first event."""
        return b"data: " + msgspec.json.encode(error_body(exc)) + b"\n\n"

    async def _start(self, send: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": [*self.raw_headers]})

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Cancel if the client leaves; break long silences."""
        loop = asyncio.get_running_loop()
        gone = loop.create_task(disconnected(receive))
        try:
            while not gone.done():
                silence_left = self._last_write + KEEPALIVE - loop.time()
                if silence_left <= 0:
                    self._last_write = loop.time()
                    if not self._started:
                        await self._start(send)
                    await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                else:
                    await asyncio.wait({gone}, timeout=silence_left)
            self.cancel()
        finally:
            gone.cancel()


def _encoded(headers: Mapping[str, str] | None) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
