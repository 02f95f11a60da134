"""Anthropic's package: messages, streams, tools and counting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")

USER: Any = {"role": "user", "content": "What is the weather in Paris?"}
GREEDY: Any = {"extra_body": {"temperature": 0}}  # newer releases have no argument for it
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "London"]}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_a_stream_equals_the_plain_answer(client: Any, model: str) -> None:
    options: Any = {
        "model": model,
        "max_tokens": 24,
        "messages": [USER],
        "system": "Be brief.",
        **GREEDY,
    }
    plain = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == plain.content[0].text == final.content[0].text
    assert final.stop_reason == plain.stop_reason
    assert final.usage.output_tokens == plain.usage.output_tokens > 0


def test_stop_sequences(client: Any, model: str) -> None:
    asked = [
        {"role": "user", "content": "Say: one, two, three."},
        {"role": "assistant", "content": "one, two"},
    ]
    answer = client.messages.create(
        model=model, max_tokens=24, messages=asked, stop_sequences=["three"], **GREEDY
    )
    assert answer.stop_reason in {"stop_sequence", "end_turn", "max_tokens"}
    assert (answer.stop_sequence == "three") == (answer.stop_reason == "stop_sequence")


def test_tools_in_two_steps(client: Any, model: str) -> None:
    options: Any = {"model": model, "max_tokens": 100, "tools": [WEATHER], **GREEDY}
    with client.messages.stream(messages=[USER], tool_choice={"type": "any"}, **options) as stream:
        asked = stream.get_final_message()
    calls = [block for block in asked.content if block.type == "tool_use"]
    assert asked.stop_reason == "tool_use" and calls
    assert all(call.input["city"] in {"Paris", "London"} for call in calls)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "clear sky"} for call in calls]
    told: Any = [USER, {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
    counted = client.messages.count_tokens(model=model, messages=told, tools=[WEATHER])
    answer = client.messages.create(messages=told, **options)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_errors(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="no-such-model", max_tokens=1, messages=[USER])
    assert unknown.value.body["error"]["type"] == "not_found_error" and unknown.value.request_id
