"""/v1/messages over HTTP, with Anthropic's package and without. What the model would write is scripted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

PATH = "/v1/messages"
USER: Any = {"role": "user", "content": "weather?"}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture(scope="module")
def module_server(start_server: Callable[..., Server]) -> Server:
    return start_server(context_length=2048, api_keys=("one",))


@pytest.fixture
def server(module_server: Server) -> Iterator[Server]:
    module_server.client.headers["x-api-key"] = "one"
    module_server.executor.script = "It rains."
    yield module_server
    module_server.executor.script = None
    module_server.wait_idle()


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="one", max_retries=0) as client:
        yield client


def answer(server: Server, **body: Any) -> dict[str, Any]:
    """A plain answer, which must equal the streamed one."""
    body = {"messages": [USER], "max_tokens": 200, **body}
    response = server.post(PATH, **body)
    assert response.status_code == 200, response.text
    plain: dict[str, Any] = response.json()
    Message.model_validate(plain, strict=True)
    assert without_ids(assembled(events(server, **body))) == without_ids(plain)
    return plain


def events(server: Server, **body: Any) -> list[dict[str, Any]]:
    """Events of a stream, whose names and shapes are right."""
    response = server.post(PATH, stream=True, **body)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "ping":
            EVENTS.validate_python(event)
            found.append(event)
    return found


def assembled(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events add up to."""
    assert stream[0]["type"] == "message_start" and stream[-1] == {"type": "message_stop"}
    message: dict[str, Any] = stream[0]["message"]
    written: list[str] = []
    for event in stream[1:-1]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            written = []
        elif event["type"] == "content_block_delta":
            written.append(event["delta"].get("text") or event["delta"]["partial_json"])
        elif event["type"] == "content_block_stop":
            block = message["content"][event["index"]]
            if block["type"] == "text":
                block["text"] = "".join(written)
            elif written:
                block["input"] = json.loads("".join(written))
        else:
            assert event["type"] == "message_delta"
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    usage = message["usage"]
    total = usage["input_tokens"] + usage["cache_read_input_tokens"]
    content = [{**block, "id": ""} for block in message["content"]]
    return {**message, "id": "", "content": content, "usage": (total, usage["output_tokens"])}


def test_a_message_and_its_shape(server: Server) -> None:
    message = answer(server, system="Be brief.", metadata={"user_id": "u"}, thinking={"type": "disabled"})
    assert message["content"] == [{"type": "text", "text": "It rains."}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["model"] == "toy" and message["id"].startswith("msg_")
    block = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    again = answer(server, system=[block])
    used, first = again["usage"], message["usage"]
    assert used["cache_read_input_tokens"] > 0
    assert used["input_tokens"] + used["cache_read_input_tokens"] == (
        first["input_tokens"] + first["cache_read_input_tokens"]
    )


def test_why_it_stops(server: Server) -> None:
    server.executor.script = "one, two; three"
    for stops, text, found in ((["; ", "."], "one, two", "; "), ([" t", "two"], "one,", " t")):
        message = answer(server, stop_sequences=stops)
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", found)
        assert message["content"][0]["text"] == text
    message = answer(server, max_tokens=3)
    assert message["stop_reason"] == "max_tokens" and message["usage"]["output_tokens"] == 3
    server.executor.script = ""
    assert answer(server)["content"] == []


def test_an_answer_ends_with_the_context(start_server: Callable[..., Server]) -> None:
    server = start_server(context_length=64)
    server.executor.script = "x" * 100
    message = answer(server, max_tokens=100_000)
    used = message["usage"]
    assert message["stop_reason"] == "model_context_window_exceeded"
    assert used["input_tokens"] + used["cache_read_input_tokens"] + used["output_tokens"] == 64
    response = server.post(PATH, messages=[{"role": "user", "content": "x " * 64}], max_tokens=5)
    assert response.status_code == 400 and "context length" in response.json()["error"]["message"]


def test_calls(server: Server) -> None:
    server.executor.script = "One moment. " + CALL
    message = answer(server, tools=[WEATHER])
    text, call = message["content"]
    assert text["text"] == "One moment." and message["stop_reason"] == "tool_use"
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Paris"})
    assert call["id"].startswith("toolu_")
    server.executor.script = CALL
    named = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    for choice in ({"type": "any"}, named):
        assert answer(server, tools=[WEATHER], tool_choice=choice)["stop_reason"] == "tool_use"
    message = answer(server, tools=[WEATHER], tool_choice={"type": "none"})
    assert message["content"][0]["type"] == "text"


def test_a_call_that_is_cut(server: Server) -> None:
    server.executor.script = CALL
    body = {"messages": [USER], "tools": [WEATHER], "max_tokens": 60}
    (call,) = server.post(PATH, **body).json()["content"]
    assert call["name"] == "get_weather" and call["input"] == {}


def test_it_goes_on_with_its_last_words(server: Server) -> None:
    server.executor.script = "It rains."
    message = answer(server, messages=[USER, {"role": "assistant", "content": "It r"}])
    assert message["content"][0]["text"] == "ains."


def test_a_format(server: Server) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema["additionalProperties"] = False
    server.executor.script = '{"a":1}'
    message = answer(server, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(message["content"][0]["text"]) == {"a": 1}


def test_a_client_runs_tools(client: anthropic.Anthropic, server: Server) -> None:
    server.executor.script = CALL
    options: Any = {"model": "toy", "max_tokens": 200, "tools": [WEATHER]}
    with client.messages.stream(messages=[USER], **options) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert "input_json" in kinds and message.stop_reason == "tool_use"
    (call,) = message.content
    assert call.type == "tool_use" and call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    said_so = {"role": "assistant", "content": message.content}
    told: Any = [USER, said_so, {"role": "user", "content": [result]}]
    server.executor.script = "It rains."
    final = client.messages.create(messages=told, **options)
    assert final.content[0].type == "text" and final.content[0].text == "It rains."
    counted = client.messages.count_tokens(model="toy", messages=told, tools=[WEATHER])
    assert final.usage.cache_read_input_tokens is not None
    assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens
    blocks = [{**result, "is_error": True}, {"type": "text", "text": "?"}]
    failed: Any = [USER, said_so, {"role": "user", "content": blocks}]
    assert client.messages.create(messages=failed, **options).stop_reason == "end_turn"


def test_a_client_streams_text(client: anthropic.Anthropic, server: Server) -> None:
    with client.messages.stream(model="toy", max_tokens=50, messages=[USER]) as stream:
        assert "".join(stream.text_stream) == "It rains."
        assert stream.get_final_message().usage.output_tokens == 10


def test_errors_have_their_shape(client: anthropic.Anthropic, server: Server) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="no-such", max_tokens=1, messages=[USER])
    assert unknown.value.body["type"] == "error" and unknown.value.request_id  # type: ignore[index, call-overload]
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index, call-overload]
    with (
        pytest.raises(anthropic.AuthenticationError),
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as stranger,
    ):
        stranger.messages.create(model="toy", max_tokens=1, messages=[USER])
    response = server.client.post(PATH, content=b"{")
    body = response.json()
    assert response.status_code == 400 and body["error"]["type"] == "invalid_request_error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert server.client.get(PATH).json()["type"] == "error"
    assert server.client.get(PATH + "/x").status_code == 404
    server.executor.failure = RuntimeError("planted")
    failed = server.post(PATH, messages=[USER], max_tokens=5)
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "api_error"


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [USER, {"role": role, "content": [*blocks]}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
BAD_FORMAT = {"type": "json_schema", "schema": {"type": "x"}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        (said(IMAGE), "messages[1].content[0]"),
        (said({**RESULT, "content": [IMAGE]}), "messages[1].content[0].content[0].type"),
        (said(RESULT, role="assistant"), "messages[1].content[0].type"),
        (said(USE), "messages[1].content[0].type"),
        (said(USE, role="assistant"), "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"output_config": {"format": BAD_FORMAT}}, "output_config.format"),
        ({"seed": 1}, "seed"),
        ({"container": "c"}, "container"),
    ],
)  # fmt: skip
def test_refused(server: Server, body: dict[str, Any], field: str) -> None:
    response = server.post(PATH, **{"messages": [USER], "max_tokens": 5, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(f"{field}: "), response.text
