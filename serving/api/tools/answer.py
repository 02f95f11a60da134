"""One answer while it is written, in the shapes of the wire: deltas as text comes, a message at the end."""

from __future__ import annotations

import secrets
from typing import Any, Protocol

from flashlet.serving.api.tools.parser import CallParser, ContentDelta, Delta
from flashlet.serving.engine.request import FinishReason, TokenEvent

WireDelta = dict[str, Any]


class Answer(Protocol):
    """What /v1/chat/completions makes of the events of one sequence."""

    start: WireDelta  # the delta of the first chunk

    def push(self, event: TokenEvent, *, has_token: bool) -> list[WireDelta]:
        """Deltas that one event adds; `has_token`: it brings a token that belongs to the answer."""

    def message(self) -> dict[str, Any]:
        """The whole message."""

    def finish_reason(self, reason: FinishReason) -> str:
        """`finish_reason` on the wire."""


class TextAnswer:
    """An answer that cannot call tools."""

    start: WireDelta = {"role": "assistant", "content": ""}  # noqa: RUF012, never changed

    def __init__(self) -> None:
        self._text: list[str] = []

    def push(self, event: TokenEvent, *, has_token: bool) -> list[WireDelta]:
        """One delta per token, also where its text is still held back."""
        self._text.append(event.text)
        return [{"content": event.text}] if event.text or has_token else []

    def message(self) -> dict[str, Any]:
        """Role and content."""
        return {"role": "assistant", "content": "".join(self._text), "refusal": None}

    def finish_reason(self, reason: FinishReason) -> str:
        """The engine's."""
        return reason


class ToolAnswer:
    """An answer that may call tools. Its content is null where there are calls and no text."""

    start: WireDelta = {"role": "assistant", "content": None}  # noqa: RUF012, never changed

    def __init__(self, parser: CallParser) -> None:
        self._parser = parser
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []

    def push(self, event: TokenEvent, *, has_token: bool) -> list[WireDelta]:
        """Deltas that one event adds: none while it is open what the text will be, or inside markup."""
        deltas = self._parser.push(event.text, event.token_id)
        if event.finish_reason is not None:
            deltas += self._parser.finish(cut=event.finish_reason == "length")
            if not self._text and not self._calls and not deltas:
                deltas = [ContentDelta("")]
        return [self._take(delta) for delta in deltas]

    def message(self) -> dict[str, Any]:
        """Role, content and calls."""
        content = "".join(self._text) if self._text else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            message["tool_calls"] = [
                call | {"function": call["function"] | {"arguments": "".join(arguments)}}
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return message

    def finish_reason(self, reason: FinishReason) -> str:
        """`tool_calls` unless there are none or the last was cut."""
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _take(self, delta: Delta) -> WireDelta:
        if isinstance(delta, ContentDelta):
            self._text.append(delta.text)
            return {"content": delta.text}
        if delta.name is None:
            self._arguments[delta.index].append(delta.arguments)
            return _call_delta({"index": delta.index, "function": {"arguments": delta.arguments}})
        call = {
            "id": "call_" + secrets.token_hex(12),
            "type": "function",
            "function": {"name": delta.name, "arguments": ""},
        }
        self._calls.append(call)
        self._arguments.append([])
        return _call_delta({"index": delta.index, **call})


def _call_delta(call: dict[str, Any]) -> WireDelta:
    return {"tool_calls": [call]}
