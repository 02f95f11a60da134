"""What /v1/responses answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel
from flashlet.serving.api.schema.chat import TokenLogprob

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class AnsweredTextPart(AnswerModel):
    """Text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class AnsweredMessageItem(AnswerModel):
    """The answer's text as an item."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[AnsweredTextPart]


class AnsweredCallItem(AnswerModel):
    """A call for the client to run."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(AnswerModel):
    """Parts of the input."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(AnswerModel):
    """Parts of the output."""

    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(AnswerModel):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(AnswerModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(AnswerModel):
    """A response, finished or not."""

    id: str = Field(examples=["resp_65f0c1d2e3a4b5c6d7e8f901"])
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[AnsweredMessageItem | AnsweredCallItem]
    usage: ResponseUsage | None
    model: str
    instructions: str | None
    previous_response_id: str | None
    background: bool
    store: bool
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    top_logprobs: int
    truncation: Literal["disabled"]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"]


class ResponseEvent(AnswerModel):
    """One event of a streamed response; `type` is its name, and says which further fields there are."""

    type: str = Field(examples=["response.output_text.delta"])
    sequence_number: int


class DeletedResponse(AnswerModel):
    """What is left of a response."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseItemList(AnswerModel):
    """A page of what a response went on from; `last_id` is the `after` of the next one."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
