"""openai-python: sync, async, streaming helpers, parsed answers, tools and embeddings."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from weather_models import GetWeather, Weather

MESSAGES: Any = [{"role": "user", "content": "Say hello, then count from one to five."}]
ASK_WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
FIXED: Any = {"temperature": 0, "seed": 1, "max_tokens": 40}


def test_stream_equals_plain(client: openai.OpenAI, model: str) -> None:
    plain = client.chat.completions.create(model=model, messages=MESSAGES, **FIXED)
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **FIXED)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain.choices[0].message.content
    )


def test_async(url: str, model: str) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            plain, stream = await asyncio.gather(
                client.chat.completions.create(model=model, messages=MESSAGES, **FIXED),
                client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **FIXED),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return plain.choices[0].message.content, "".join(pieces)

    plain, streamed = asyncio.run(ask())
    assert plain == streamed


def test_stream_helper(client: openai.OpenAI, model: str) -> None:
    options: Any = {
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ".",
    }
    with client.chat.completions.stream(model=model, messages=MESSAGES, **options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    assert final.choices[0].message.role == "assistant"
    assert final.usage is not None and final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or ()) in {
        final.usage.completion_tokens,
        final.usage.completion_tokens - 1,  # the token that ends an answer has no text
    }


def test_parse(client: openai.OpenAI, model: str) -> None:
    options: Any = {"response_format": Weather, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.parse(model=model, messages=ASK_WEATHER, **options)
    assert isinstance(answer.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(model=model, messages=ASK_WEATHER, **options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_tools_in_two_steps(client: openai.OpenAI, model: str) -> None:
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    options: Any = {"model": model, "tools": tools, "temperature": 0, "max_tokens": 100}
    asked = client.chat.completions.parse(messages=ASK_WEATHER, tool_choice="required", **options)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls" and message.tool_calls
    results = []
    for call in message.tool_calls:
        assert isinstance(call.function.parsed_arguments, GetWeather)
        results.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "clear"})})
    told: Any = [*ASK_WEATHER, message.to_dict(), *results]
    answer = client.chat.completions.create(messages=told, tool_choice="none", **options)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


def test_streamed_tool_call(client: openai.OpenAI, model: str) -> None:
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    options: Any = {"tools": tools, "tool_choice": "required", "temperature": 0, "max_tokens": 100}
    plain = client.chat.completions.create(model=model, messages=ASK_WEATHER, **options)
    with client.chat.completions.stream(model=model, messages=ASK_WEATHER, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    streamed = [call.function for call in final.choices[0].message.tool_calls or ()]
    called: Any = plain.choices[0].message.tool_calls
    assert [(call.name, call.arguments) for call in streamed] == [
        (call.function.name, call.function.arguments) for call in called
    ]
    assert final.choices[0].finish_reason == plain.choices[0].finish_reason == "tool_calls"


def test_embeddings(client: openai.OpenAI, model: str) -> None:
    texts = ["The weather is fine.", "Numbers are even or odd."]
    by_default = client.embeddings.create(model=model, input=texts)  # asks for base64
    as_floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for one, other in zip(by_default.data, as_floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-4)
    assert by_default.data[0].embedding != by_default.data[1].embedding


def test_completions_and_errors(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["One, two,", "A, B,"], max_tokens=4, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert unknown.value.code == "model_not_found" and unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=model, prompt="one two " * 9000, stream=True)
    assert long.value.code == "context_length_exceeded"
