"""POST /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from flashlet.serving.api.schema.base import Unsupported, WireModel, kind_of
from flashlet.serving.api.schema.batches import Metadata
from flashlet.serving.api.schema.response_items import InputItem
from flashlet.serving.api.schema.sampling import MAX_TOP_LOGPROBS
from flashlet.serving.api.schema.structured import JsonObjectFormat, JsonSchema, TextFormat
from flashlet.serving.api.schema.tools import MAX_TOOLS, FunctionName

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class FunctionTool(WireModel):
    """A function that the model may call; functions are the only type of tool that is built."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON schema of the arguments, an object. Omitted or empty: there are none."
    )
    strict: bool | None = Field(None, description="Arguments keep to the schema with either value.")


class FunctionChoice(WireModel):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("mode")] | Annotated[FunctionChoice, Tag("named")],
    Discriminator(
        lambda value: kind_of(value, {str: "mode", dict: "named"}),
        custom_error_type="tool_choice_type",
        custom_error_message="Input should be 'auto', 'none', 'required' or an object that names a function",
    ),
]


class SchemaFormat(JsonSchema):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]


def _format_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in {"text", "json_object", "json_schema"} else None


class TextOptions(WireModel):
    """What the text of the answer must match."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("text")]
            | Annotated[JsonObjectFormat, Tag("json_object")]
            | Annotated[SchemaFormat, Tag("json_schema")],
            Discriminator(
                _format_type,
                custom_error_type="text_format_type",
                custom_error_message="Input should be an object with type text, json_object or json_schema",
            ),
        ]
        | None
    ) = None
    verbosity: str | None = Field(None, description="Accepted, without effect.")


class NoReasoning(WireModel):
    """Models that reason are not built."""

    effort: Unsupported = None
    summary: Unsupported = None
    generate_summary: Unsupported = None


class ResponseStreamOptions(WireModel):
    """Extras of a streamed answer."""

    include_obfuscation: bool | None = Field(None, description="Accepted, without effect.")


class ResponseRequest(WireModel):
    """A conversation to continue: its new items, and where it stood."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "Say hello.", "max_output_tokens": 32, "store": False}]}
    )

    model: str | None = Field(None, description="A served model; the default one if omitted.")
    input: Annotated[
        Annotated[str, Tag("string")]
        | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), Tag("items")],
        Discriminator(
            lambda value: kind_of(value, {str: "string", list: "items"}),
            custom_error_type="input_type",
            custom_error_message="Input should be a string or a list of items",
        ),
    ]
    instructions: str | None = Field(
        None, description="The system message; that of `previous_response_id` does not go on."
    )
    previous_response_id: str | None = Field(
        None, description="A stored response, whose conversation goes on."
    )
    store: bool | None = Field(None, description="Keep the response. Default: true.")
    background: bool | None = Field(
        None, description="Answer at once; the response is polled. Needs `store`."
    )
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Default: the rest of the context."
    )
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = Field(None, description="Default: auto where there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call per answer.")
    include: list[Include] | None = Field(
        None, description="Log probabilities of the text. Encrypted reasoning is never there."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Needs `include` with `message.output_text.logprobs`."
    )
    truncation: Literal["disabled"] | None = Field(
        None, description="A conversation beyond the context is refused."
    )
    reasoning: NoReasoning | None = None
    metadata: Metadata | None = None

    user: str | None = Field(None, description="Accepted, without effect.")
    safety_identifier: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_key: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_retention: str | None = Field(None, description="Accepted, without effect.")
    service_tier: str | None = Field(None, description="Accepted, without effect.")

    conversation: Unsupported = None
    prompt: Unsupported = None
    max_tool_calls: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with log probabilities."""
        return "message.output_text.logprobs" in (self.include or ())
