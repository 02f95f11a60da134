"""The HTTP/1.1 protocol of uvicorn, with limits on a request's head, and deaf to offers to upgrade."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flashlet.serving.api.middleware import new_request_id

HEAD_TIMEOUT = 20.0  # seconds from the first byte of a request, or from connecting, to the end of its headers
MAX_HEAD_BYTES = 64 << 10


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections that never finish a request's head; answers broken HTTP with a JSON error.

    An offer to change the protocol is ignored, as RFC 9110 (7.8) allows: Java's HttpClient makes one, to
    HTTP/2, with each first request, and the parser would lose that request's body.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None  # running while a head is awaited
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._head_complete()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start to wait for the rest of a request's head."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._head_complete()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a head without end."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")

    def _should_upgrade(self) -> bool:
        """Let the callbacks pass over a head with an offer: it is read a second time."""
        return True

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Parse the head again without its offer, then the `rest` of the data, which the parser left."""
        if self.scope["method"] == "CONNECT":  # its very meaning is another protocol
            self.send_400_response("CONNECT is not supported.")
            return
        head = (
            f"{self.scope['method']} ".encode()
            + self.url
            + f" HTTP/{self.scope['http_version']}\r\n".encode()
        )
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        self.data_received(b"".join((head, *fields, b"\r\n", rest)))

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close."""
        error = {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_http"}
        body = msgspec.json.encode({"error": error})
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (new_request_id(), len(body), body)
        )
        self.transport.close()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.close)

    def _head_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
