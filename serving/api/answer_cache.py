"""Answers to deterministic requests, for exact repeats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from flashlet.serving.api.attempt import Attempt
from flashlet.serving.api.parameters import GREEDY_BELOW
from flashlet.serving.api.sse import EventStream

PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/messages"}  # which store nothing
HEADER = {"x-flashlet-cache": "hit"}
# Quotation marks inside of texts are escaped, so these bytes stand for the field alone.
_USAGE = b'"usage":{'
_MARKED = b'"usage":{"cached_answer":true,'
_OVERHEAD = 200  # bytes in memory beside those of one event


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A response without its body or its events, and these."""

    response: Response
    parts: list[bytes]  # one: the body; for a stream: its events
    num_bytes: int

    def replay(self) -> Response:
        """The answer as it goes to a client."""
        if isinstance(self.response, EventStream):
            return self.response.reading(_each(self.parts), _nothing, HEADER)
        headers = {name: value for name, value in self.response.headers.items() if name != "content-length"}
        return Response(self.parts[0], headers=headers | HEADER)


class AnswerCache:
    """The answers that were used last, within `max_bytes`; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._answers: OrderedDict[tuple[object, ...], CachedAnswer] = OrderedDict()  # latest use last

    def takes(self, attempt: Attempt, body: dict[str, Any]) -> bool:
        """Whether answers to such a request are kept: the same request must always get the same."""
        if not self._max_bytes or attempt.path not in PATHS:
            return False
        options = body.get("stream_options")
        is_resumable = isinstance(options, dict) and options.get("resumable")
        if is_resumable or body.get("deadline_ms") is not None:  # which may cut an answer anywhere
            return False
        temperature = body.get("temperature")
        is_greedy = isinstance(temperature, (int, float)) and temperature < GREEDY_BELOW
        return is_greedy or body.get("seed") is not None

    def get(self, attempt: Attempt, fingerprint: str) -> Response | None:
        """The answer to the same request, if it is here."""
        key = (*attempt.what, fingerprint)
        found = self._answers.get(key)
        if found is None:
            return None
        self._answers.move_to_end(key)
        return found.replay()

    def put(self, attempt: Attempt, fingerprint: str, response: Response, events: list[bytes]) -> None:
        """Keep a complete answer, and drop those whose last use is longest ago."""
        if isinstance(response, EventStream):
            parts = [event.replace(_USAGE, _MARKED) for event in events]
            bare: Response = response.reading(_each([]), _nothing)
        else:
            parts = [_marked(bytes(response.body))]
            bare = Response(headers=response.headers)
        num_bytes = sum(len(part) + _OVERHEAD for part in parts)
        key = (*attempt.what, fingerprint)
        if num_bytes > self._max_bytes or key in self._answers:
            return
        self._answers[key] = CachedAnswer(bare, parts, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


def _marked(body: bytes) -> bytes:
    """Say in `usage` that the answer is not new. An object before it may be of a call's arguments."""
    head, _, tail = body.rpartition(_USAGE)
    return head + _MARKED + tail


def _nothing() -> None:
    """Nothing runs that could be cancelled."""


async def _each(events: list[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event
