"""Encoding of streamed chunks: what never changes is encoded once per request."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from flashlet.serving.api.generation import Generation
from flashlet.serving.api.schema.sampling import SamplingFields
from flashlet.serving.api.service import LoadedModel, Service

_encode = msgspec.json.Encoder().encode
# Clients that read by str.splitlines(), such as httpx's iter_lines(), end a line at these, too.
_LINE_ENDS = [(end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\u0085\u2028\u2029"]


def encode_json(value: Any) -> bytes:
    """JSON on one line, by whichever definition of a line."""
    data = _encode(value)
    if not data.isascii():
        for end, escaped in _LINE_ENDS:
            data = data.replace(end, escaped)
    return data


def answer_head(
    kind: str, prefix: str, fields: SamplingFields, service: Service, model: LoadedModel
) -> dict[str, Any]:
    """The fields that open every answer and chunk of one request."""
    return {
        "id": prefix + secrets.token_hex(12),
        "object": kind,
        "created": int(time.time()),
        "model": fields.model or service.config.model_names[0],
        "system_fingerprint": model.system_fingerprint,
    }


class ChunkWriter:
    """Turns what a token adds into one `data:` event."""

    def __init__(self, head: dict[str, Any], fields: SamplingFields, generation: Generation) -> None:
        options = fields.stream_options
        self.resume_id: str | None = head["id"] if options and options.resumable else None
        self._generation = generation
        self._include_usage = bool(options and options.include_usage)
        self._continuous_usage = bool(options and options.continuous_usage_stats)
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        self._tail = b',"usage":null}\n\n' if self._include_usage else b"}\n\n"

    def chunk(
        self,
        index: int,
        payload: bytes,
        logprobs: bytes = b"null",
        finish: str | None = None,
        further: bytes = b"",
    ) -> bytes:
        """One event. `payload` is the choice's own fields, encoded: `"delta":{...}` or `"text":"..."`.

        `further`: fields beside the choices, each with a comma before it.
        """
        reason = b'"%b"' % finish.encode() if finish else b"null"
        tail = self._usage_tail() if self._continuous_usage else self._tail
        return b'%b{"index":%d,%b,"logprobs":%b,"finish_reason":%b}]%b%b' % (
            self._head, index, payload, logprobs, reason, further, tail
        )  # fmt: skip

    def ending(self) -> bytes:
        """What follows the last choice's end: the usage chunk if it was asked for, or nothing."""
        return self._head + b"]" + self._usage_tail() if self._include_usage else b""

    def _usage_tail(self) -> bytes:
        return b',"usage":%b}\n\n' % encode_json(self._generation.usage())
