"""An answer of /v1/messages while it is written: the events of its stream, and the message at the end."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from flashlet.serving.api.chunks import encode_json
from flashlet.serving.api.tools.parser import CallDelta, Delta

if TYPE_CHECKING:
    from flashlet.serving.api.generation import Generation
    from flashlet.serving.api.tools.answer import Answer
    from flashlet.serving.engine.request import TokenEvent


class MessageWriter:
    """Makes events and keeps `message` up to date."""

    def __init__(self, model: str, generation: Generation, answer: Answer, max_tokens: int) -> None:
        self.message: dict[str, Any] = {
            "id": "msg_" + secrets.token_hex(12),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._generation = generation
        self._answer = answer
        self._max_tokens = max_tokens
        self._started = False
        self._pieces: list[str] = []  # of the block that is being written

    def push(self, event: TokenEvent) -> Iterator[bytes]:
        """Events that a token adds."""
        if not self._started:
            self._started = True
            yield _event("message_start", message={**self.message, "content": [], "usage": self._usage()})
            yield _event("ping")
        for delta in self._answer.push(event, has_token=False):
            yield from self._take(delta)
        if event.finish_reason is not None:
            yield from self._close()
            yield from self._end(event)

    def _take(self, delta: Delta) -> Iterator[bytes]:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                call_id = self._answer.calls[delta.index].id.replace("call_", "toolu_", 1)
                yield from self._open({"type": "tool_use", "id": call_id, "name": delta.name, "input": {}})
            if delta.arguments:
                yield self._delta(
                    delta.arguments, {"type": "input_json_delta", "partial_json": delta.arguments}
                )
        elif delta.text:
            if not self.message["content"]:
                yield from self._open({"type": "text", "text": ""})
            yield self._delta(delta.text, {"type": "text_delta", "text": delta.text})

    def _open(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self.message["content"].append(block)
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, piece: str, delta: dict[str, Any]) -> bytes:
        self._pieces.append(piece)
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[bytes]:
        """Finish the last block, if there is one."""
        if self.message["content"]:
            yield _event("content_block_stop", index=self._index)
            self.message["content"][-1] = _filled(self.message["content"][-1], self._pieces)
            self._pieces = []

    def _end(self, event: TokenEvent) -> Iterator[bytes]:
        reason = self._stop_reason(event)
        ending = {"stop_reason": reason, "stop_sequence": event.stop if reason == "stop_sequence" else None}
        self.message |= ending | {"usage": self._usage()}
        yield _event("message_delta", delta=ending, usage=self._usage())
        yield _event("message_stop")

    def _stop_reason(self, event: TokenEvent) -> str:
        assert event.finish_reason is not None
        reason = self._answer.finish_reason(event.finish_reason)
        if reason == "length":
            full = event.num_output_tokens < self._max_tokens
            return "model_context_window_exceeded" if full else "max_tokens"
        if reason == "tool_calls":
            return "tool_use"
        return "end_turn" if event.stop is None else "stop_sequence"

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _usage(self) -> dict[str, Any]:
        """Prompt tokens count once: as read from the cache, or as input."""
        usage = self._generation.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
            "service_tier": "standard",
        }


def _filled(block: dict[str, Any], pieces: Sequence[str]) -> dict[str, Any]:
    """A block with what its deltas brought; of a call that was cut, the arguments that are complete, and
    none where they are beyond the parser's limits: integers of thousands of digits, too deep nesting.
    """
    written = "".join(pieces)
    if block["type"] == "text":
        return {**block, "text": written}
    try:
        arguments = from_json(written, allow_partial=True) if written else {}
    except ValueError:
        arguments = {}
    return {**block, "input": arguments}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_json({"type": kind, **fields}))
