"""What a model is told about tools, and how calls and results look in the history of a conversation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pydantic_core

from flashlet.serving.api.tools.convention import Convention
from flashlet.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    from flashlet.serving.api.schema.chat import Message
    from flashlet.serving.api.schema.tools import FunctionDefinition, ToolCall

# For templates that know no tools: one per line, and calls in the form that Hermes models are trained on.
_INTRODUCTION = """\
You can call these tools:
<tools>
{tools}
</tools>
If one of them can do what the user asks for, reply with a call:
<tool_call>
{{"name": "<tool>", "arguments": {{...}}}}
</tool_call>
Otherwise reply in plain text."""
# After results: without it, a small model repeats them as they are.
_AFTER_RESULTS = "Tell me the result in a sentence."
_EXAMPLE_CHARACTERS = 200  # of the request in the example


def check_tool_messages(messages: Sequence[Message]) -> None:
    """Raise InvalidRequestError for calls, results and missing contents at the wrong places."""
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequestError(
                f"{place}.tool_calls: only allowed in the assistant's messages", f"{place}.tool_calls"
            )
        if message.content is None and not message.tool_calls:
            raise InvalidRequestError(
                f"{place}.content: this field is required", f"{place}.content", "missing_required_parameter"
            )
        if message.role == "tool" and message.tool_call_id is None:
            raise InvalidRequestError(
                f"{place}.tool_call_id: this field is required in a tool's message",
                f"{place}.tool_call_id",
                "missing_required_parameter",
            )


def template_tools(functions: Sequence[FunctionDefinition]) -> list[dict[str, Any]]:
    """Tools as chat templates expect them."""
    return [{"type": "function", "function": _described(function)} for function in functions]


def template_messages(
    messages: Sequence[Message], convention: Convention, functions: Sequence[FunctionDefinition] = ()
) -> list[dict[str, Any]]:
    """Messages as the chat template expects them: only the fields that were given, content as one string.

    Where the template does not render tools itself, `functions` are described in the system message, and
    calls and results become text.

    Raises:
        InvalidRequestError: the arguments of a call are not the JSON text of an object.
    """
    rendered = [
        _template_message(message, convention, f"messages[{index}]") for index, message in enumerate(messages)
    ]
    if convention.native:
        return rendered
    return _with_introduction(_with_merged_results(rendered), functions, convention)


def _template_message(message: Message, convention: Convention, place: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    fields: dict[str, Any] = {"role": role, "content": message.text}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_calls:
        calls = [
            _template_call(call, convention, f"{place}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ]
        if convention.native:
            fields["tool_calls"] = calls
        else:
            fields["content"] = "\n".join([*filter(None, [message.text]), _prompted_calls(calls, convention)])
    if message.tool_call_id is not None and convention.native:
        fields["tool_call_id"] = _call_id(message.tool_call_id, convention)
    return fields


def _template_call(call: ToolCall, convention: Convention, place: str) -> dict[str, Any]:
    """Templates want the arguments as an object, and encode it themselves."""
    text = call.function.arguments
    try:
        arguments = pydantic_core.from_json(text, allow_inf_nan=False) if text.strip() else {}
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"{place}.function.arguments: expected the JSON text of an object, got {text[:60]!r}",
            f"{place}.function.arguments",
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": _call_id(call.id, convention), "type": "function", "function": function}


def _call_id(call_id: str, convention: Convention) -> str:
    """`call_id`, or what stands for it where the template wants ids of a certain length."""
    length = convention.id_length
    if length is None or re.fullmatch(f"[A-Za-z0-9]{{{length}}}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:length]


def _described(function: FunctionDefinition) -> dict[str, Any]:
    """A function's definition as models have seen them: no `strict`, always with parameters."""
    description = {} if function.description is None else {"description": function.description}
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"name": function.name, **description, "parameters": parameters}


def _prompted_calls(calls: Sequence[dict[str, Any]], convention: Convention) -> str:
    """Calls as the grammar makes the model write them."""
    assert convention.next is not None
    written = [
        call["function"]["name"] + convention.middle + _json(call["function"]["arguments"]) for call in calls
    ]
    return convention.trigger + convention.first + convention.next.join(written) + convention.last


def _with_merged_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as messages of the user, because a template without tools may know no role `tool`; one
    message for all results in a row, because many templates want roles to alternate.
    """
    merged: list[dict[str, Any]] = []
    for is_result, group in groupby(messages, key=lambda message: message["role"] == "tool"):
        if is_result:
            results = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in group]
            merged.append({"role": "user", "content": "\n".join([*results, _AFTER_RESULTS])})
        else:
            merged += group
    return merged


def _with_introduction(
    messages: list[dict[str, Any]], functions: Sequence[FunctionDefinition], convention: Convention
) -> list[dict[str, Any]]:
    """`messages` after a description of the tools, and an example: instructions alone hardly ever bring a
    small model to call anything.
    """
    if not functions:
        return messages
    tools = "\n".join(_json(_described(function)) for function in functions)
    introduction = _INTRODUCTION.format(tools=tools)
    if messages[0]["role"] == "system":
        introduction = f"{messages[0]['content']}\n\n{introduction}"
        messages = messages[1:]
    return [{"role": "system", "content": introduction}, *_example(functions[0], convention), *messages]


def _example(function: FunctionDefinition, convention: Convention) -> list[dict[str, Any]]:
    """The user asks for what the function does, and the assistant calls it."""
    lines = (function.description or "").strip().splitlines() or [f"Call {function.name}."]
    properties = (function.parameters or {}).get("properties")
    arguments = {}
    if isinstance(properties, dict):
        arguments = {name: _sample(schema) for name, schema in properties.items()}
    call = {"function": {"name": function.name, "arguments": arguments}}
    return [
        {"role": "user", "content": lines[0][:_EXAMPLE_CHARACTERS]},
        {"role": "assistant", "content": _prompted_calls([call], convention)},
    ]


def _sample(schema: Any) -> Any:
    """A value of the type that `schema` names, with nothing in it that a model could copy by mistake."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    samples: dict[Any, Any] = {
        "integer": 1,
        "number": 1,
        "boolean": True,
        "array": [],
        "object": {},
        "null": None,
    }
    return samples.get(kind, "...") if isinstance(kind, str) else "..."


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
