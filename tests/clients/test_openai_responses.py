"""openai-python: /v1/responses, stored, streamed, in the background."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from weather_models import GetWeather, Weather

FIXED: Any = {"temperature": 0, "max_output_tokens": 24}


def test_a_conversation_goes_on(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="Say hello.", **FIXED)
    second = client.responses.create(model=model, input="Again.", previous_response_id=first.id, **FIXED)
    told: Any = [
        {"role": "user", "content": "Say hello."},
        *first.output,
        {"role": "user", "content": "Again."},
    ]
    again = client.responses.create(model=model, input=told, store=False, **FIXED)
    assert again.output_text == second.output_text and second.output_text
    assert again.usage and second.usage and again.usage.input_tokens == second.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_a_stream_equals_the_plain_answer(client: openai.OpenAI, model: str) -> None:
    plain = client.responses.create(model=model, input="Count from one to five.", **FIXED)
    with client.responses.stream(model=model, input="Count from one to five.", **FIXED) as stream:
        events = [*stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == plain.output_text
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert events[-1].type in {"response.completed", "response.incomplete"}


def test_parse(client: openai.OpenAI, model: str) -> None:
    options: Any = {"model": model, "input": "What is the weather in Paris?", "text_format": Weather}
    assert client.responses.parse(temperature=0, **options).output_parsed is not None
    with client.responses.stream(temperature=0, **options) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Weather)


def test_tools_in_two_steps(client: openai.OpenAI, model: str) -> None:
    tool: Any = openai.pydantic_function_tool(GetWeather)["function"] | {"type": "function"}
    options: Any = {"model": model, "tools": [tool], "temperature": 0, "max_output_tokens": 100}
    asked = client.responses.create(input="Weather in Paris?", tool_choice="required", **options)
    calls = [item for item in asked.output if item.type == "function_call"]
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "clear sky"} for call in calls
    ]
    assert calls and all(GetWeather.model_validate_json(call.arguments) for call in calls)
    answer = client.responses.create(
        input=results, previous_response_id=asked.id, tool_choice="none", **options
    )
    assert answer.output_text


def test_background(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Say hello.", background=True, **FIXED)
    while response.status in {"queued", "in_progress"}:
        time.sleep(0.05)
        response = client.responses.retrieve(response.id)
    assert response.status in {"completed", "incomplete"} and response.output_text
    long = client.responses.create(model=model, input="Count to a thousand.", background=True, temperature=0)
    assert client.responses.cancel(long.id).status in {"cancelled", "completed"}
