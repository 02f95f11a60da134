"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from flashlet.serving.api.schema.base import AnswerModel, Unsupported, WireModel, kind_of
from flashlet.serving.api.schema.logprobs import PromptLogprobs
from flashlet.serving.api.schema.sampling import MAX_TOP_LOGPROBS, SamplingFields
from flashlet.serving.api.schema.tools import (
    MAX_TOOLS,
    AnsweredCall,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from flashlet.serving.api.schema.usage import Usage

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(WireModel):
    """One part of a message; text is the only type that is built."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("parts")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "parts"}),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of text parts",
    ),
]


class Message(WireModel):
    """One turn of the conversation. `developer` counts as `system`."""

    role: Role
    content: Content | None = Field(None, description="May be null beside `tool_calls` only.")
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="Calls of an earlier answer.")
    tool_call_id: str | None = Field(None, description="Of a tool's message: the call that it answers.")
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    parsed: Any = Field(None, description="Accepted, without effect: what SDKs made of `content`.")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """Content as one string; parts are separated by a line break."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())


class ChatRequest(SamplingFields):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Same as `max_tokens`; the smaller one counts. Default: the rest of the context."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = Field(None, description="Default: auto where there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call per answer.")

    prediction: dict[str, Any] | None = Field(None, description="Accepted, without effect.")
    modalities: list[Literal["text"]] | None = None

    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    reasoning_effort: Unsupported = None
    web_search_options: Unsupported = None


class TopLogprob(AnswerModel):
    """One token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The chosen token and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(AnswerModel):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(AnswerModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] | None = None


class ChatChoice(AnswerModel):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class ChatCompletion(AnswerModel):
    """A finished chat answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class ChatDelta(AnswerModel):
    """New part of the answer; `role` comes once."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(AnswerModel):
    """What one chunk adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    token_ids: list[int] | None = None


class ChatChunk(AnswerModel):
    """One `data:` line of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
