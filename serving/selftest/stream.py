"""A streamed answer as it came over the wire."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flashlet.serving.selftest.rule import expect, shown


@dataclass(frozen=True)
class Stream:
    """The body of a streamed answer, read to its end."""

    content_type: str
    raw: bytes

    @cached_property
    def events(self) -> list[str]:
        """What stands between the blank lines."""
        return self.raw.decode().removesuffix("\n\n").split("\n\n")

    @cached_property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of all `data:` events but [DONE]."""
        payloads = [event.removeprefix("data:").strip() for event in self.events if event.startswith("data:")]
        chunks = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
        for chunk in chunks:
            expect(isinstance(chunk, dict), f"a chunk that is no object: {shown(chunk)}")
        return chunks

    @cached_property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of all chunks, in order."""
        return [choice for chunk in self.chunks for choice in chunk.get("choices") or ()]

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """What a chat adds, in order."""
        return [choice["delta"] for choice in self.choices]

    @property
    def text(self) -> str:
        """The whole answer, of a chat or a legacy completion."""
        return "".join(
            (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
            for choice in self.choices
        )

    @property
    def finish_reasons(self) -> list[str]:
        """The finish reasons that are not null."""
        return [choice["finish_reason"] for choice in self.choices if choice.get("finish_reason")]

    @property
    def usages(self) -> list[dict[str, Any]]:
        """The usage objects that are not null."""
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]
