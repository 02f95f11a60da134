"""POST /v1/estimate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from flashlet.serving.api.schema.base import AnswerModel
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.schema.completions import CompletionRequest
from flashlet.serving.api.schema.messages import MessagesRequest
from flashlet.serving.api.schema.responses import ResponseRequest

_MESSAGES = [{"role": "user", "content": "Say hello."}]


def _example(endpoint: str, **body: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [{"endpoint": endpoint, **body}]}, defer_build=True)


class ChatEstimate(ChatRequest):
    """A body of /v1/chat/completions."""

    model_config = _example("/v1/chat/completions", messages=_MESSAGES, max_tokens=32)
    endpoint: Literal["/v1/chat/completions"]


class CompletionEstimate(CompletionRequest):
    """A body of /v1/completions."""

    model_config = _example("/v1/completions", prompt="The capital of France is", max_tokens=8)
    endpoint: Literal["/v1/completions"]


class ResponseEstimate(ResponseRequest):
    """A body of /v1/responses."""

    model_config = _example("/v1/responses", input="Say hello.", max_output_tokens=32)
    endpoint: Literal["/v1/responses"]


class MessagesEstimate(MessagesRequest):
    """A body of /v1/messages."""

    model_config = _example("/v1/messages", messages=_MESSAGES, max_tokens=32)
    endpoint: Literal["/v1/messages"]


EstimateRequest = Annotated[
    ChatEstimate | CompletionEstimate | ResponseEstimate | MessagesEstimate, Field(discriminator="endpoint")
]


class EstimateAnswer(AnswerModel):
    """What to expect of a request if it came now. Of several sequences, the first token and the last end."""

    object: Literal["estimate"]
    prompt_tokens: int = Field(description="As `usage` would count them.")
    cached_tokens: int = Field(description="Of them, those whose results are in the prefix cache.")
    output_tokens: int = Field(description="The mean of recent answers with this limit.")
    queue_position: int = Field(description="Sequences that would start before; 0: it would start at once.")
    ttft_ms: float | None = Field(
        description="Milliseconds to the first token; null before the server has run anything."
    )
    total_ms: float | None = Field(description="Milliseconds to the end.")
