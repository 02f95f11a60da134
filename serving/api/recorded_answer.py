"""Answers that clients kept, and where two of them first differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

SHOWN = 40  # characters of a text from the difference on

Difference = dict[str, Any]  # FirstDifference of schema/verify.py, without its choice
TokenAt = Callable[["RecordedChoice", str, int], int | None]  # (choice, text, character) -> token


class RecordedFunction(msgspec.Struct):
    """A called function."""

    name: str
    arguments: str


class RecordedCall(msgspec.Struct):
    """One tool call; its id is random and does not count."""

    function: RecordedFunction


class RecordedMessage(msgspec.Struct):
    """The message of a chat choice."""

    content: str | None = None
    tool_calls: list[RecordedCall] | None = None


class RecordedChoice(msgspec.Struct):
    """One choice, of either endpoint."""

    index: int
    finish_reason: str | None
    text: str | None = None
    message: RecordedMessage | None = None
    token_ids: list[int] | None = None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Everything that can be compared, by the name of its field."""
        if self.text is not None:
            yield "text", self.text
        if self.message is not None:
            yield "message.content", self.message.content or ""
            for number, call in enumerate(self.message.tool_calls or ()):
                yield f"message.tool_calls[{number}].function.name", call.function.name
                yield f"message.tool_calls[{number}].function.arguments", call.function.arguments
        yield "finish_reason", self.finish_reason or ""


class RecordedUsage(msgspec.Struct):
    """Token counts."""

    prompt_tokens: int


class RecordedAnswer(msgspec.Struct):
    """A plain answer of one of the endpoints; what else it has does not count."""

    object: str
    choices: list[RecordedChoice]
    system_fingerprint: str | None = None
    usage: RecordedUsage | None = None


def first_difference(
    recorded: RecordedChoice, replay: RecordedChoice, token_at: TokenAt
) -> Difference | None:
    """Where `replay` leaves `recorded`: the first token if tokens were recorded, else the first character."""
    if recorded.token_ids is not None and recorded.token_ids != replay.token_ids:
        expected, got = recorded.token_ids, replay.token_ids or []
        index = _common(expected, got)
        return _difference("token_ids", index, None, _at(expected, index), _at(got, index))
    ours, theirs = dict(recorded.texts()), dict(replay.texts())
    for field in [*theirs, *ours]:
        expected_text, got_text = ours.get(field), theirs.get(field)
        if expected_text == got_text:
            continue
        character = _common(expected_text or "", got_text or "")
        token = None if field == "finish_reason" else token_at(replay, got_text or "", character)
        return _difference(
            field, token, character, _from(expected_text, character), _from(got_text, character)
        )
    return None


def _difference(
    field: str,
    token_index: int | None,
    character: int | None,
    expected: int | str | None,
    got: int | str | None,
) -> Difference:
    return {
        "field": field,
        "token_index": token_index,
        "character": character,
        "expected": expected,
        "got": got,
    }


def _common(one: str | list[int], other: str | list[int]) -> int:
    """Length of what both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _at(ids: list[int], index: int) -> int | None:
    return ids[index] if index < len(ids) else None


def _from(text: str | None, character: int) -> str | None:
    return None if text is None else text[character : character + SHOWN]
