"""Items of a conversation, as /v1/responses writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import Unsupported, WireModel, kind_of
from flashlet.serving.api.schema.tools import FunctionName

ItemId = Annotated[str, Field(min_length=1, max_length=128)]
CallId = Annotated[str, Field(min_length=1, max_length=128)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(WireModel):
    """Text for the model."""

    type: Literal["input_text"]
    text: str


class OutputText(WireModel):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = Field(None, description="Accepted, without effect.")
    logprobs: list[Any] | None = Field(None, description="Accepted, without effect.")
    parsed: Any = Field(None, description="Accepted, without effect: what SDKs made of `text`.")


def _part_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in {"input_text", "output_text"} else None


TextPart = Annotated[
    Annotated[InputText, Tag("input_text")] | Annotated[OutputText, Tag("output_text")],
    Discriminator(
        _part_type,
        custom_error_type="part_type",
        custom_error_message="Input should be an object with type input_text or output_text",
    ),
]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("parts")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "parts"}),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of text parts",
    ),
]


class InputMessage(WireModel):
    """One turn. `developer` counts as `system`."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None
    status: Status | None = Field(None, description="Accepted, without effect.")
    phase: str | None = Field(None, description="Accepted, without effect.")


class FunctionCallItem(WireModel):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: str = Field(description="JSON text of an object.")
    id: ItemId | None = None
    status: Status | None = Field(None, description="Accepted, without effect.")
    parsed_arguments: Any = Field(
        None, description="Accepted, without effect: what SDKs made of `arguments`."
    )
    namespace: Unsupported = None
    caller: Unsupported = None


class FunctionCallOutputItem(WireModel):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    id: ItemId | None = None
    status: Status | None = Field(None, description="Accepted, without effect.")
    namespace: Unsupported = None
    caller: Unsupported = None


GivenItem = InputMessage | FunctionCallItem | FunctionCallOutputItem
_ITEM_TYPES = {"message", "function_call", "function_call_output"}


def _item_type(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in _ITEM_TYPES else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")],
    Discriminator(
        _item_type,
        custom_error_type="item_type",
        custom_error_message="Input should be a message, a function_call or a function_call_output",
    ),
]
