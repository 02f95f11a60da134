"""A request to /v1/messages as a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flashlet.serving.api.dialects.transcript import Transcript
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.schema.message_blocks import Block, TextBlock, ToolResultBlock, ToolUseBlock
from flashlet.serving.api.schema.messages import MessagesRequest, PromptFields
from flashlet.serving.api.schema.structured import JsonSchema, JsonSchemaFormat
from flashlet.serving.api.schema.tools import FunctionDefinition, Tool
from flashlet.serving.errors import InvalidRequestError

_MODES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(body: PromptFields) -> tuple[ChatRequest, Mapping[str, str]]:
    """The conversation, and what its fields are called in `body`.

    Raises:
        InvalidRequestError: a block or a choice that makes no sense.
    """
    names = {
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "continue_final_message": "messages",
        "tool_choice.function": "tool_choice",
    }
    for index in range(len(body.tools or ())):
        names[f"tools[{index}].function"] = f"tools[{index}]"
        names[f"tools[{index}].function.parameters"] = f"tools[{index}].input_schema"
    transcript = _transcript(body, names)
    goes_on = body.messages[-1].role == "assistant"
    request = ChatRequest(
        messages=transcript.messages,
        continue_final_message=goes_on,
        add_generation_prompt=not goes_on,
        response_format=_response_format(body),
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        **_sampling(body),
    )
    return request, names


def _sampling(body: PromptFields) -> dict[str, Any]:
    if not isinstance(body, MessagesRequest):
        return {}
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }


def _transcript(body: PromptFields, names: dict[str, str]) -> Transcript:
    transcript = Transcript(names)
    system = [TextBlock(type="text", text=body.system)] if isinstance(body.system, str) else body.system or ()
    for part in system:
        transcript.add_text("system", part.text, "system", joined=True)
    for index, message in enumerate(body.messages):
        place = f"messages[{index}]"
        if isinstance(message.content, str):
            transcript.add_text(message.role, message.content, place, joined=True)
        else:
            for number, block in enumerate(message.content):
                _add_block(transcript, message.role, block, f"{place}.content[{number}]")
    return transcript


def _add_block(transcript: Transcript, role: Any, block: Block, place: str) -> None:
    if isinstance(block, TextBlock):
        transcript.add_text(role, block.text, place, joined=True)
    elif isinstance(block, ToolUseBlock):
        _check_role(role, "assistant", place)
        transcript.add_call(block.id, block.name, json.dumps(block.input), place, "input")
    else:
        _check_role(role, "user", place)
        transcript.add_result(block.tool_use_id, _result_text(block), place)


def _check_role(role: str, expected: str, place: str) -> None:
    if role != expected:
        raise InvalidRequestError(
            f"{place}.type: only allowed in messages of the role '{expected}'", f"{place}.type"
        )


def _result_text(block: ToolResultBlock) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    return f"Error: {text}" if block.is_error else text


def _response_format(body: PromptFields) -> JsonSchemaFormat | None:
    wanted = body.output_config.format if body.output_config is not None else None
    if wanted is None:
        return None
    schema = JsonSchema.model_validate({"name": "answer", "schema": wanted.definition})
    return JsonSchemaFormat(type="json_schema", json_schema=schema)


def _tools(body: PromptFields) -> list[Tool] | None:
    tools = [
        Tool(
            type="function",
            function=FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.input_schema
            ),
        )
        for tool in body.tools or ()
    ]
    return tools or None


def _tool_choice(body: PromptFields) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequestError(
            "tool_choice.name: expected where type is 'tool', and only there", "tool_choice.name"
        )
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return _MODES[choice.type]
