"""litellm, through its provider for OpenAI-compatible servers."""

from __future__ import annotations

from typing import Any

import pytest

litellm = pytest.importorskip("litellm", reason="litellm runs in ./scripts/test-clients")

MESSAGES = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "London"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def options(url: str, model: str) -> dict[str, Any]:
    return {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0,
            "max_tokens": 60, "num_retries": 0}  # fmt: skip


def test_chat_and_stream(options: dict[str, Any]) -> None:
    plain = litellm.completion(messages=MESSAGES, **options)
    pieces = list(litellm.completion(messages=MESSAGES, stream=True, **options))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == plain.choices[0].message.content
    assert plain.usage.completion_tokens > 0


def test_tools(options: dict[str, Any]) -> None:
    answer = litellm.completion(messages=MESSAGES, tools=[TOOL], tool_choice="required", **options)
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = list(
        litellm.completion(messages=MESSAGES, tools=[TOOL], tool_choice="required", stream=True, **options)
    )
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    calls = [answer.choices[0].message.tool_calls, rebuilt.choices[0].message.tool_calls]
    assert calls[0]
    assert [call.function.arguments for call in calls[0]] == [call.function.arguments for call in calls[1]]


def test_errors_are_typed(options: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "one two " * 9000}], **options)


def test_embedding(options: dict[str, Any]) -> None:
    place = {name: options[name] for name in ("model", "api_base", "api_key")}
    assert len(litellm.embedding(input=["hello"], **place).data[0]["embedding"]) > 0
