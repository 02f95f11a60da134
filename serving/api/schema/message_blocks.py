"""Messages of /v1/messages, and the blocks that they consist of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import WireModel, kind_of
from flashlet.serving.api.schema.tools import FunctionName


class CacheControl(WireModel):
    """Accepted, without effect: prefixes are always cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(WireModel):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolUseBlock(WireModel):
    """A call in an earlier answer."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = Field(None, description="Accepted, without effect.")


ResultContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("blocks")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "blocks"}),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of text blocks",
    ),
]


class ToolResultBlock(WireModel):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: ResultContent | None = None
    is_error: bool | None = Field(None, description="True: the model reads `Error:` before the content.")
    cache_control: CacheControl | None = None


def _block_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in {"text", "tool_use", "tool_result"} else None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    Discriminator(
        _block_type,
        custom_error_type="block_type",
        custom_error_message="Input should be a text, tool_use or tool_result block",
    ),
]
Content = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[list[Block], Field(min_length=1, fail_fast=True), Tag("blocks")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "blocks"}),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of blocks",
    ),
]


class MessageTurn(WireModel):
    """One turn, or part of one: turns of one role in a row are joined."""

    role: Literal["user", "assistant"]
    content: Content
