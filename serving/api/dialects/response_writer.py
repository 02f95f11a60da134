"""A response while it is written: the events of its stream, and the object that they lead to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from flashlet.serving.api.chunks import encode_json
from flashlet.serving.api.dialects.response_items import Item, new_id
from flashlet.serving.api.tools.answer import Answer
from flashlet.serving.api.tools.parser import CallDelta, Delta


class ResponseWriter:
    """Makes events, one `bytes` each, numbered from 0, and keeps `response` up to date."""

    def __init__(self, response: dict[str, Any], answer: Answer) -> None:
        self.response = response
        self._answer = answer
        self._num_events = 0
        self._item: Item | None = None  # the one that is being written
        self._text: list[str] = []  # of that item
        self._logprobs: list[dict[str, Any]] = []  # of that item

    def opening(self) -> Iterator[bytes]:
        """The events before anything has run."""
        yield self._state("response.created")
        if self.response["status"] == "queued":
            yield self._state("response.queued")

    def start(self) -> bytes:
        """The event of the first step."""
        self.response["status"] = "in_progress"
        return self._state("response.in_progress")

    def push(self, delta: Delta, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[bytes]:
        """What a delta adds; `logprobs`: of the tokens since the last delta of text."""
        if isinstance(delta, CallDelta):
            yield from self._push_call(delta)
        elif delta.text:
            yield from self.push_text(delta.text, logprobs)

    def push_text(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[bytes]:
        """More text of a message, which begins here if none is open."""
        if self._item is None:
            self._item = {
                "id": new_id("msg"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            yield self._item_event("response.output_item.added", item=self._item)
            yield self._part_event("response.content_part.added", part=_text_part("", []))
        if text:
            self._text.append(text)
            self._logprobs += logprobs
            yield self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)

    def end(self, reason: str | None, usage: dict[str, Any]) -> Iterator[bytes]:
        """Close what is open. `reason`: `stop`, `length` or `tool_calls`; None if it was cancelled."""
        status = "incomplete" if reason in {None, "length"} else "completed"
        if reason is not None and self._item is None and not self.response["output"]:
            yield from self.push_text("")
        yield from self._close(status)
        response = self.response
        response["status"] = "cancelled" if reason is None else status
        response["usage"] = _usage(usage)
        if reason == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "completed":
            response["completed_at"] = int(time.time())
        yield self._state(f"response.{status}")

    def fail(self, error: dict[str, Any]) -> Iterator[bytes]:
        """End with an error, as `error_body` makes it."""
        yield from self._close("incomplete")
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": error["error"]["message"]}
        yield self._state("response.failed")

    def error(self, error: dict[str, Any]) -> bytes:
        """The event of an error that is no state of the response."""
        fields = {name: error["error"][name] for name in ("code", "message", "param")}
        return self._event("error", fields)

    def _push_call(self, delta: CallDelta) -> Iterator[bytes]:
        if delta.name is not None:
            yield from self._close("completed")
            self._item = {
                "id": new_id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": self._answer.calls[delta.index].id,
                "name": delta.name,
                "arguments": "",
            }
            yield self._item_event("response.output_item.added", item=self._item)
        if delta.arguments:
            self._text.append(delta.arguments)
            yield self._item_event(
                "response.function_call_arguments.delta", item_id=self._id, delta=delta.arguments
            )

    def _close(self, status: str) -> Iterator[bytes]:
        """Finish the open item, if there is one."""
        item, text, logprobs = self._item, "".join(self._text), self._logprobs
        if item is None:
            return
        item = {**item, "status": status}
        if item["type"] == "message":
            part = _text_part(text, logprobs)
            item["content"] = [part]
            yield self._part_event("response.output_text.done", text=text, logprobs=logprobs)
            yield self._part_event("response.content_part.done", part=part)
        else:
            item["arguments"] = text
            yield self._item_event(
                "response.function_call_arguments.done",
                item_id=self._id, name=item["name"], arguments=text,
            )  # fmt: skip
        yield self._item_event("response.output_item.done", item=item)
        self.response["output"].append(item)
        self._item, self._text, self._logprobs = None, [], []

    @property
    def _id(self) -> str:
        assert self._item is not None
        return str(self._item["id"])

    def _state(self, kind: str) -> bytes:
        return self._event(kind, {"response": self.response})

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, {"output_index": len(self.response["output"]), **fields})

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._item_event(kind, item_id=self._id, content_index=0, **fields)

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        data = encode_json({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
