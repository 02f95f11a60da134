"""A request to /v1/responses as a conversation, and the response before there is an answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flashlet.serving.api.dialects.response_items import Item, add_items, new_id, parse_items
from flashlet.serving.api.dialects.transcript import Transcript
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.schema.responses import FunctionChoice, ResponseRequest, SchemaFormat
from flashlet.serving.api.schema.structured import JsonSchemaFormat
from flashlet.serving.api.schema.tools import FunctionDefinition, Tool
from flashlet.serving.errors import InvalidRequestError


def check_request(body: ResponseRequest) -> None:
    """Raise InvalidRequestError for fields that contradict each other."""
    problem = None
    if body.background and body.store is False:
        problem = "background", "only allowed where store is not false"
    elif body.top_logprobs and not body.wants_logprobs:
        problem = "top_logprobs", "only allowed where include has 'message.output_text.logprobs'"
    elif body.stream_options is not None and not body.stream:
        problem = "stream_options", "only allowed where stream is true"
    if problem is not None:
        raise InvalidRequestError(f"{problem[0]}: {problem[1]}", problem[0])


def chat_request(
    body: ResponseRequest, history: Sequence[Item], new: Sequence[Item]
) -> tuple[ChatRequest, Mapping[str, str]]:
    """The conversation `history` and then `new`, and what its fields are called in `body`."""
    names = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        "tool_choice.function": "tool_choice",
    }
    transcript = Transcript(names)
    if body.instructions is not None:
        transcript.add_text("system", body.instructions, "instructions")
    add_items(transcript, parse_items(history), None)
    add_items(transcript, parse_items(new), "input")
    tools = []
    for index, tool in enumerate(body.tools or ()):
        names[f"tools[{index}].function"] = f"tools[{index}]"
        function = FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
        tools.append(Tool(type="function", function=function))
    choice = body.tool_choice
    request = ChatRequest(
        messages=transcript.messages,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=body.wants_logprobs,
        top_logprobs=body.top_logprobs if body.wants_logprobs else None,
        response_format=_response_format(body),
        tools=tools or None,
        tool_choice={"type": "function", "function": {"name": choice.name}}  # type: ignore[arg-type]
        if isinstance(choice, FunctionChoice)
        else choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )
    return request, names


def _response_format(body: ResponseRequest) -> Any:
    wanted = None if body.text is None else body.text.format
    if isinstance(wanted, SchemaFormat):
        return JsonSchemaFormat(type="json_schema", json_schema=wanted)
    return wanted


def new_response(body: ResponseRequest, model: str) -> dict[str, Any]:
    """The response object of a request that is queued."""
    text = {"format": {"type": "text"}}
    if body.text is not None:
        text |= body.text.model_dump(by_alias=True, exclude_none=True)
    choice = body.tool_choice
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if body.background else "in_progress",
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        "model": body.model or model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "background": bool(body.background),
        "store": body.store is not False,
        "max_output_tokens": body.max_output_tokens,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "text": text,
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": True if tool.strict is None else tool.strict,
            }
            for tool in body.tools or ()
        ],
        "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "reasoning": {"effort": None, "summary": None},
        "metadata": body.metadata or {},
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "service_tier": "default",
    }
