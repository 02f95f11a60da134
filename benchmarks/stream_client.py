"""A client for streamed completions that costs the servers' machine as little as possible.

While a stream runs, only the time and the bytes of each read are kept; HTTP and JSON are parsed afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any, cast

import httptools
import msgspec

_END = b"data: [DONE]"
_TIMEOUT = 900.0  # seconds for one answer


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer; times in seconds of time.perf_counter()."""

    sent: float
    text_times: tuple[float, ...]  # arrival of each chunk that carries text
    finished: float
    text: str
    prompt_tokens: int  # as the server counts; 0 if the stream was cut
    completion_tokens: int

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to the first text."""
        return self.text_times[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [after - before for before, after in itertools.pairwise(self.text_times)]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, and the model to ask for."""

    host: str
    port: int
    model: str

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """A POST to /v1/completions: greedy, of exactly `max_tokens` tokens, streamed."""
        body = msgspec.json.encode(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Recording(asyncio.Protocol):
    """One request on a connection of its own, and every read of the response."""

    def __init__(self, request: bytes) -> None:
        """Send `request` as soon as the connection stands."""
        self.reads: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(cls, endpoint: Endpoint, prompt: str, max_tokens: int) -> Recording:
        """Connect and send; the answer is complete when `done` is."""
        request = endpoint.request(prompt, max_tokens)
        loop = asyncio.get_running_loop()
        _, recording = await loop.create_connection(lambda: cls(request), endpoint.host, endpoint.port)
        return recording

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep the read."""
        self.reads.append((time.perf_counter(), data))
        if _END in data:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Finish, whatever has come."""
        self._finish()

    def abort(self) -> None:
        """Leave without waiting for the end."""
        if self._transport:
            self._transport.abort()

    def answer(self) -> Answer:
        """Parse what was read. Raises RuntimeError if it is not a completion."""
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        for arrival, data in self.reads:
            response.arrival = arrival
            parser.feed_data(data)
        if not response.texts:
            start = b"".join(data for _, data in self.reads)[:500].decode(errors="replace")
            raise RuntimeError(f"expected a streamed completion, got: {start or 'nothing'}")
        return Answer(
            sent=self._sent,
            text_times=tuple(arrival for arrival, _ in response.texts),
            finished=self.reads[-1][0],
            text="".join(text for _, text in response.texts),
            prompt_tokens=response.usage.get("prompt_tokens", 0),
            completion_tokens=response.usage.get("completion_tokens", 0),
        )

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport:
            self._transport.close()


async def complete(endpoint: Endpoint, prompt: str, max_tokens: int) -> Recording:
    """Record one answer to its end."""
    recording = await Recording.start(endpoint, prompt, max_tokens)
    await asyncio.wait_for(recording.done, _TIMEOUT)
    return recording


class _Response:
    """Callbacks of httptools: events with text, and the usage at the end."""

    def __init__(self) -> None:
        self.arrival = 0.0
        self.texts: list[tuple[float, str]] = []
        self.usage: dict[str, int] = {}
        self._buffer = b""

    def on_body(self, body: bytes) -> None:
        *events, self._buffer = (self._buffer + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                self._on_event(msgspec.json.decode(event[6:]))

    def _on_event(self, event: dict[str, Any]) -> None:
        text = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
        if text:
            self.texts.append((self.arrival, text))
        self.usage = event.get("usage") or self.usage
