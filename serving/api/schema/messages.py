"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's shapes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StrictBool, Tag

from flashlet.serving.api.schema.base import Unsupported, WireModel, kind_of
from flashlet.serving.api.schema.message_blocks import CacheControl, MessageTurn, TextBlock
from flashlet.serving.api.schema.sampling import StopStrings
from flashlet.serving.api.schema.tools import MAX_TOOLS, FunctionName


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("expected false")  # Literal[False] would take 0 for it
    return value


class ClientTool(WireModel):
    """A tool that the client runs; no other type is built."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON schema of the arguments, an object.")
    strict: bool | None = Field(None, description="Arguments keep to the schema with either value.")
    cache_control: CacheControl | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: (
        Annotated[StrictBool, AfterValidator(_only_false), Field(json_schema_extra={"const": False})] | None
    ) = None
    eager_input_streaming: bool | None = Field(None, description="Without effect: arguments always stream.")
    input_examples: Unsupported = None


class MessageToolChoice(WireModel):
    """How tools may be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = Field(None, description="Of the tool, where type is tool.")
    disable_parallel_tool_use: bool | None = Field(None, description="True: at most one call per answer.")


class Thinking(WireModel):
    """Models that think are not built."""

    type: Literal["disabled"]


class OutputFormat(WireModel):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    definition: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireModel):
    """What the answer must match."""

    format: OutputFormat | None = None
    effort: Unsupported = None


class MessageMetadata(WireModel):
    """Who asks."""

    user_id: str | None = Field(None, description="Accepted, without effect.")


System = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("blocks")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "blocks"}),
        custom_error_type="system_type",
        custom_error_message="Input should be a string or a list of text blocks",
    ),
]


class PromptFields(WireModel):
    """What the model reads."""

    model: str | None = Field(None, description="A served model; the default one if omitted.")
    messages: Annotated[list[MessageTurn], Field(min_length=1, fail_fast=True)]
    system: System | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessageToolChoice | None = Field(None, description="Default: auto where there are tools.")
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class CountTokensRequest(PromptFields):
    """A prompt to count."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "Say hello."}]}]}
    )


class MessagesRequest(PromptFields):
    """A conversation to continue. Where its last message is the assistant's, the answer goes on with that."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}]
        }
    )

    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        description="An answer never goes beyond the context, however large this is."
    )
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="0: all tokens.")] | None = None

    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(
        None, description="Accepted, without effect."
    )
    container: Unsupported = None
    context_management: Unsupported = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None
