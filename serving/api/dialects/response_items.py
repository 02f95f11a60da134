"""Items of a response's conversation: in their normal form, as they are stored, and as messages."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from flashlet.serving.api.schema.chat import Message as ChatMessage
from flashlet.serving.api.schema.response_items import (
    Content,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    Message,
)
from flashlet.serving.api.schema.tools import FunctionCall as CalledFunction
from flashlet.serving.api.schema.tools import ToolCall

Item = dict[str, Any]

_ITEMS: TypeAdapter[list[Message | FunctionCall | FunctionCallOutput]] = TypeAdapter(
    list[InputItem], config={"defer_build": True}
)


def new_id(prefix: str) -> str:
    """A fresh id of an item or a response."""
    return f"{prefix}_{secrets.token_hex(12)}"


def normal_items(given: str | Sequence[Message | FunctionCall | FunctionCallOutput]) -> list[Item]:
    """The input of a request as full items, each with an id."""
    if isinstance(given, str):
        given = [Message(role="user", content=given)]
    return [_normal_item(item) for item in given]


def parse_items(items: Sequence[Item]) -> list[Message | FunctionCall | FunctionCallOutput]:
    """What `normal_items` or an answer made, to be read again."""
    return _ITEMS.validate_python([*items])


def _normal_item(item: Message | FunctionCall | FunctionCallOutput) -> Item:
    if isinstance(item, FunctionCall):
        return {
            "id": item.id or new_id("fc"),
            "type": "function_call",
            "status": item.status or "completed",
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.arguments,
        }
    if isinstance(item, FunctionCallOutput):
        return {
            "id": item.id or new_id("fco"),
            "type": "function_call_output",
            "status": item.status or "completed",
            "call_id": item.call_id,
            "output": _text(item.output),
        }
    return {
        "id": item.id or new_id("msg"),
        "type": "message",
        "status": item.status or "completed",
        "role": item.role,
        "content": _parts(item),
    }


def _parts(message: Message) -> list[dict[str, Any]]:
    texts = [message.content] if isinstance(message.content, str) else [part.text for part in message.content]
    if message.role == "assistant":
        return [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return [{"type": "input_text", "text": text} for text in texts]


def _text(content: Content) -> str:
    """Content as one string; parts are separated by a line break, as in chats."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class Transcript:
    """Items as messages of a chat: the assistant's text and its calls next to it become one message."""

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[ChatMessage] = []
        self.names: dict[str, str] = {"messages": "input"}  # of the messages' fields, in the request
        if instructions is not None:
            self.names["messages[0]"] = "instructions"
            self.messages.append(ChatMessage(role="system", content=instructions))

    def add(self, items: Sequence[Message | FunctionCall | FunctionCallOutput], place: str | None) -> None:
        """Add items that the request gives at `place`, such as "input"; None: it does not give them."""
        for index, item in enumerate(items):
            self._add(item, None if place is None else f"{place}[{index}]")

    def _add(self, item: Message | FunctionCall | FunctionCallOutput, place: str | None) -> None:
        if isinstance(item, FunctionCall):
            self._add_call(item, place)
            return
        if isinstance(item, FunctionCallOutput):
            message = ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id)
        else:
            message = ChatMessage(role=item.role, content=_text(item.content))
        if place is not None:
            self.names[f"messages[{len(self.messages)}]"] = place
        self.messages.append(message)

    def _add_call(self, item: FunctionCall, place: str | None) -> None:
        call = ToolCall(
            id=item.call_id,
            type="function",
            function=CalledFunction(name=item.name, arguments=item.arguments),
        )
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(ChatMessage(role="assistant", tool_calls=[]))
        last = self.messages[-1]
        calls = last.tool_calls = [*(last.tool_calls or ()), call]
        if place is not None:
            self.names[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls) - 1}].function"] = place
