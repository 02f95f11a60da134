"""What a chat request says about tools, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flashlet.serving.api.schema.tools import NamedToolChoice
from flashlet.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    from flashlet.serving.api.schema.chat import ChatRequest
    from flashlet.serving.api.schema.tools import FunctionDefinition

_COMBINED = {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "additionalProperties"}


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and how they may be used."""

    functions: Sequence[FunctionDefinition]
    choice: Literal["auto", "none", "required"]
    callable: Sequence[int]  # indices of the functions that may be called
    single: bool  # at most one call

    @property
    def forced(self) -> bool:
        """Whether there is a call in any case."""
        return self.choice == "required"


def tool_use(body: ChatRequest) -> ToolUse | None:
    """Tools of the request; None if it gives none.

    Raises:
        InvalidRequestError: names given twice, a choice without tools or of an unknown one.
    """
    if not body.tools:
        if body.tool_choice is not None and body.tool_choice != "none":
            raise InvalidRequestError("tool_choice: only allowed where tools are given", "tool_choice")
        return None
    functions = [tool.function for tool in body.tools]
    places: dict[str, int] = {}
    for index, function in enumerate(functions):
        if places.setdefault(function.name, index) != index:
            raise InvalidRequestError(
                f"tools[{index}].function.name: expected different names, got '{function.name}' twice",
                f"tools[{index}].function.name",
            )
    everything, single = range(len(functions)), body.parallel_tool_calls is False
    choice = body.tool_choice or "auto"
    if not isinstance(choice, NamedToolChoice):
        return ToolUse(functions, choice, everything, single)
    name = choice.function.name
    if name not in places:
        raise InvalidRequestError(
            f"tool_choice: expected one of the given tools, got '{name}'", "tool_choice.function.name"
        )
    return ToolUse(functions, "required", [places[name]], single=True)


def arguments_schema(function: FunctionDefinition, param: str) -> Mapping[str, Any]:
    """Schema of the arguments: always of an object, whose listed properties are all that it may have unless
    the schema says otherwise.

    Raises:
        InvalidRequestError: the schema is of something else than an object; `param` names it.
    """
    schema = function.parameters or {"type": "object", "properties": {}}
    kind = schema.get("type", "object")
    if kind != "object":
        raise InvalidRequestError(f"{param}.type: expected 'object', got {str(kind)[:60]!r}", param)
    closed = "properties" in schema and not _COMBINED & schema.keys()
    return schema | {"type": "object"} | ({"additionalProperties": False} if closed else {})
