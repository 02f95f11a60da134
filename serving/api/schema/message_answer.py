"""What /v1/messages answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel


class AnsweredTextBlock(AnswerModel):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class AnsweredToolUse(AnswerModel):
    """A call for the client to run."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(AnswerModel):
    """Tokens read and written; the prompt is the sum of the first three."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]


class AnsweredMessage(AnswerModel):
    """A finished answer."""

    id: str = Field(examples=["msg_65f0c1d2e3a4b5c6d7e8f901"])
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredTextBlock | AnsweredToolUse]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(AnswerModel):
    """One event of a streamed answer; `type` is its name, and says which further fields there are."""

    type: str = Field(examples=["content_block_delta"])


class TokenCount(AnswerModel):
    """Length of a prompt."""

    input_tokens: int


class MessageErrorDetail(AnswerModel):
    """What went wrong."""

    type: str = Field(examples=["invalid_request_error"])
    message: str


class MessageErrorBody(AnswerModel):
    """Body of every answer of /v1/messages that is not a success."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str | None
