"""Tools of a chat request, and the calls of an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import AnswerModel, WireModel, kind_of

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON schema of the arguments, an object. Omitted or empty: there are none."
    )
    strict: bool | None = Field(None, description="Arguments keep to the schema with either value.")


class Tool(WireModel):
    """A tool; functions are the only type that is built."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(WireModel):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(WireModel):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionReference


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("mode")] | Annotated[NamedToolChoice, Tag("named")],
    Discriminator(
        lambda value: kind_of(value, {str: "mode", dict: "named"}),
        custom_error_type="tool_choice_type",
        custom_error_message="Input should be 'auto', 'none', 'required' or an object that names a function",
    ),
]


class FunctionCall(WireModel):
    """Which function an earlier answer called, and how."""

    name: FunctionName
    arguments: str = Field(description="JSON text of an object.")
    parsed_arguments: Any = Field(
        None, description="Accepted, without effect: what SDKs made of `arguments`."
    )


class ToolCall(WireModel):
    """A call in an earlier answer."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: FunctionCall
    index: int | None = Field(None, description="Accepted, without effect: the place in an earlier stream.")


class AnsweredFunction(AnswerModel):
    """The called function."""

    name: str
    arguments: str


class AnsweredCall(AnswerModel):
    """A call for the client to run."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class FunctionDelta(AnswerModel):
    """New part of a call's function: first its name with empty arguments, then arguments only."""

    name: str | None = None
    arguments: str


class ToolCallDelta(AnswerModel):
    """New part of the call `index`; id, type and name come once."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
