"""One answer while it is written: its text and its calls."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from flashlet.serving.api.tools.parser import CallDelta, CallParser, ContentDelta, Delta
from flashlet.serving.engine.request import FinishReason, TokenEvent


@dataclass(slots=True)
class Call:
    """A call for the client to run."""

    name: str
    id: str = field(default_factory=lambda: "call_" + secrets.token_hex(12))
    pieces: list[str] = field(default_factory=list)  # of the arguments' JSON text

    @property
    def arguments(self) -> str:
        """JSON text so far; of an object, once the call is complete."""
        return "".join(self.pieces)


class Answer:
    """What the events of one sequence mean, whatever the dialect of the client."""

    def __init__(self, parser: CallParser | None = None) -> None:
        """`parser`: None for an answer that cannot call tools."""
        self.calls: list[Call] = []
        self._parser = parser
        self._text: list[str] = []

    @property
    def may_call(self) -> bool:
        """Whether there may be calls."""
        return self._parser is not None

    @property
    def text(self) -> str:
        """Text outside of calls, so far."""
        return "".join(self._text)

    def push(self, event: TokenEvent, *, has_token: bool) -> list[Delta]:
        """What one event adds; `has_token`: it brings a token that belongs to the answer.

        Without tools that is one delta per token, also where its text is still held back. With tools there
        is none while it is open what the text will be, or inside markup.
        """
        if self._parser is None:
            deltas: list[Delta] = [ContentDelta(event.text)] if event.text or has_token else []
        else:
            deltas = self._parse(self._parser, event)
        for delta in deltas:
            self._take(delta)
        return deltas

    def finish_reason(self, reason: FinishReason) -> str:
        """The engine's, or `tool_calls` where there are calls and the last was not cut."""
        return "tool_calls" if reason == "stop" and self.calls else reason

    def _parse(self, parser: CallParser, event: TokenEvent) -> list[Delta]:
        deltas = parser.push(event.text, event.token_id)
        if event.finish_reason is not None:
            deltas += parser.finish(cut=event.finish_reason == "length")
            if not self._text and not self.calls and not deltas:
                deltas = [ContentDelta("")]
        return deltas

    def _take(self, delta: Delta) -> None:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                self.calls.append(Call(delta.name))
            self.calls[delta.index].pieces.append(delta.arguments)
        else:
            self._text.append(delta.text)
