"""What becomes of calls in a message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flashlet.serving.api.dialects.message_writer import MessageWriter
from flashlet.serving.api.tools.answer import Answer
from flashlet.serving.api.tools.convention import HERMES
from flashlet.serving.api.tools.parser import CallParser
from flashlet.serving.engine.request import TokenEvent

USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 250 + "]" * 250])
def test_arguments_beyond_the_limits_of_the_parser(value: str) -> None:
    generation: Any = SimpleNamespace(usage=lambda: USAGE)
    answer = Answer(CallParser(HERMES, trigger_id=None, anchored=False))
    writer = MessageWriter("toy", generation, answer, max_tokens=10_000)
    text = HERMES.trigger + HERMES.first + "f" + HERMES.middle + f'{{"a": {value}}}' + HERMES.last
    events = b"".join(writer.push(TokenEvent(1, text, finish_reason="stop")))
    assert value.encode() in events and b"event: message_stop\n" in events
    (call,) = writer.message["content"]
    assert (call["name"], call["input"]) == ("f", {})
    assert writer.message["stop_reason"] == "tool_use"
