"""Items of a response's conversation: in their normal form, as they are stored, and as messages."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from flashlet.serving.api.dialects.transcript import Transcript
from flashlet.serving.api.schema.response_items import (
    Content,
    FunctionCallItem,
    FunctionCallOutputItem,
    GivenItem,
    InputItem,
    InputMessage,
)

Item = dict[str, Any]

_ITEMS: TypeAdapter[list[GivenItem]] = TypeAdapter(list[InputItem], config={"defer_build": True})


def new_id(prefix: str) -> str:
    """A fresh id of an item or a response."""
    return f"{prefix}_{secrets.token_hex(12)}"


def normal_items(given: str | Sequence[GivenItem]) -> list[Item]:
    """The input of a request as full items, each with an id."""
    if isinstance(given, str):
        given = [InputMessage(role="user", content=given)]
    return [_normal_item(item) for item in given]


def parse_items(items: Sequence[Item]) -> list[GivenItem]:
    """What `normal_items` or an answer made, to be read again."""
    return _ITEMS.validate_python([*items])


def _normal_item(item: GivenItem) -> Item:
    if isinstance(item, FunctionCallItem):
        return {
            "id": item.id or new_id("fc"),
            "type": "function_call",
            "status": item.status or "completed",
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.arguments,
        }
    if isinstance(item, FunctionCallOutputItem):
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


def _parts(message: InputMessage) -> list[dict[str, Any]]:
    texts = [message.content] if isinstance(message.content, str) else [part.text for part in message.content]
    if message.role == "assistant":
        return [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return [{"type": "input_text", "text": text} for text in texts]


def _text(content: Content) -> str:
    """Content as one string; parts are separated by a line break, as in chats."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def add_items(
    transcript: Transcript,
    items: Sequence[GivenItem],
    place: str | None,
) -> None:
    """Add items that the request gives at `place`, such as "input"; None: it does not give them."""
    for index, item in enumerate(items):
        item_place = None if place is None else f"{place}[{index}]"
        if isinstance(item, FunctionCallItem):
            transcript.add_call(item.call_id, item.name, item.arguments, item_place, "arguments")
        elif isinstance(item, FunctionCallOutputItem):
            transcript.add_result(item.call_id, _text(item.output), item_place)
        else:
            transcript.add_text(item.role, _text(item.content), item_place)
