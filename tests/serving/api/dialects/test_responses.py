"""/v1/responses over HTTP, with openai-python and without. What the model would write is scripted."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from flashlet.serving.responses.config import ResponseConfig
from flashlet.serving.responses.response_table import ResponseTable

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

PATH = "/v1/responses"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OPENING = ["response.created", "response.in_progress"]
TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


class Sky(BaseModel):
    """An answer with a shape."""

    sky: Literal["clear", "cloudy"]


@pytest.fixture(scope="module")
def module_server(start_server: Callable[..., Server]) -> Server:
    return start_server(context_length=4096, api_keys=("one", "two"))


@pytest.fixture
def server(module_server: Server) -> Iterator[Server]:
    module_server.client.headers["x-api-key"] = "one"
    module_server.executor.script = "It rains."
    yield module_server
    module_server.executor.script = None
    module_server.executor.delay = 0.0
    module_server.wait_idle()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="one", max_retries=0) as client:
        yield client


def streamed(server: Server, **body: Any) -> list[dict[str, Any]]:
    """Events of a stream, whose names, numbers and shapes are right."""
    return events_of(server.post(PATH, stream=True, **body))


def events_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream") and "[DONE]" not in response.text
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        events.append(event)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Types in order, each run of deltas once."""
    types = [event["type"] for event in events]
    return [kind for kind, before in zip(types, [None, *types], strict=False) if kind != before]


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    fields = {**response, "id": "", "created_at": 0, "completed_at": 0, "usage": None}
    fields["output"] = [{**item, "id": "", "call_id": ""} for item in fields["output"]]
    return fields


def test_a_response_and_its_shape(server: Server) -> None:
    body = {"input": "weather?", "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0}
    answer = server.post(PATH, **body)
    assert answer.status_code == 200, answer.text
    response = answer.json()
    Response.model_validate(response, strict=True)
    assert response["object"] == "response" and response["status"] == "completed"
    assert response["id"].startswith("resp_") and response["completed_at"] >= response["created_at"]
    (item,) = response["output"]
    part = {"type": "output_text", "text": "It rains.", "annotations": [], "logprobs": []}
    assert item["content"] == [part]
    assert response["instructions"] == "Be brief." and response["metadata"] == {"a": "b"}
    assert response["usage"]["output_tokens"] == 10
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert response["error"] is None and response["incomplete_details"] is None and response["store"] is True


def test_events_of_text(server: Server) -> None:
    events = streamed(server, input="weather?")
    assert kinds(events) == [*OPENING, *TEXT_EVENTS, "response.completed"]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == "It rains." and events[0]["response"]["output"] == []
    final = events[-1]["response"]
    assert {event["item_id"] for event in events if "item_id" in event} == {final["output"][0]["id"]}
    plain = server.post(PATH, input="weather?").json()
    assert without_ids(final) == without_ids(plain)


def test_events_of_calls(server: Server) -> None:
    server.executor.script = "One moment. " + CALL
    events = streamed(server, input="weather?", tools=[WEATHER])
    assert kinds(events) == [*OPENING, *TEXT_EVENTS, *CALL_EVENTS, "response.completed"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    call = events[-1]["response"]["output"][1]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    assert call["call_id"].startswith("call_") and call["id"].startswith("fc_")
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert done["arguments"] == call["arguments"] and done["output_index"] == 1


def test_cut_off(server: Server) -> None:
    events = streamed(server, input="weather?", max_output_tokens=4)
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete" and final["status"] == "incomplete"
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["output"][0]["status"] == "incomplete" and final["output"][0]["content"][0]["text"] == "It r"
    server.executor.script = CALL
    final = server.post(PATH, input="w", tools=[WEATHER], max_output_tokens=55).json()
    assert final["output"][0]["status"] == "incomplete" and final["output"][0]["type"] == "function_call"


def test_an_empty_answer_has_an_item(server: Server) -> None:
    server.executor.script = ""
    events = streamed(server, input="w")
    without_deltas = [kind for kind in TEXT_EVENTS if "delta" not in kind]
    assert kinds(events) == [*OPENING, *without_deltas, "response.completed"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_logprobs(server: Server) -> None:
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = streamed(server, input="w", **options)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert all(len(event["logprobs"]) == 1 == len(event["delta"]) for event in deltas)
    scores = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert "".join(score["token"] for score in scores) == "It rains." and len(scores[0]["top_logprobs"]) == 2


def test_failures(server: Server) -> None:
    server.executor.failure = RuntimeError("planted")
    response = server.post(PATH, input="w", stream=True)
    assert response.status_code == 500 and response.json()["error"]["code"] == "engine_failed"


def test_a_client_goes_on(client: openai.OpenAI, server: Server) -> None:
    first = client.responses.create(input="weather?", instructions="Be brief.", temperature=0)
    second = client.responses.create(input="and tomorrow?", previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.instructions is None
    asked = client.responses.input_items.list(second.id, order="asc")
    texts = [item.content[0].text for item in asked.data]  # type: ignore[union-attr]
    assert texts == ["weather?", "It rains.", "and tomorrow?"]
    told = [
        {"role": "user", "content": "weather?"}, *first.output, {"role": "user", "content": "and tomorrow?"},
    ]  # fmt: skip
    again = client.responses.create(input=told, store=False)  # type: ignore[arg-type]
    assert again.usage and second.usage and again.usage.input_tokens == second.usage.input_tokens
    page = client.responses.input_items.list(second.id, limit=2)
    assert len(page.data) == 2 and len([*page]) == 3
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    third = client.responses.create(input="why?", previous_response_id=second.id)
    assert len(client.responses.input_items.list(third.id).data) == 5


def test_a_client_runs_tools(client: openai.OpenAI, server: Server) -> None:
    server.executor.script = CALL
    first = client.responses.create(input="weather?", tools=[WEATHER])
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    server.executor.script = "It rains."
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    by_id = client.responses.create(input=[result], previous_response_id=first.id, tools=[WEATHER])
    told: Any = [{"role": "user", "content": "weather?"}, *first.output, result]
    by_items = client.responses.create(input=told, tools=[WEATHER])
    assert by_id.output_text == by_items.output_text == "It rains."
    assert by_id.usage and by_items.usage and by_id.usage.input_tokens == by_items.usage.input_tokens


def test_a_client_streams_and_parses(client: openai.OpenAI, server: Server) -> None:
    with client.responses.stream(input="weather?", model="toy") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "It rains."
    server.executor.script = '{"sky":"clear"}'
    parsed = client.responses.parse(input="weather?", model="toy", text_format=Sky)
    assert parsed.output_parsed == Sky(sky="clear")
    assert parsed.text and parsed.text.format and parsed.text.format.type == "json_schema"


def test_background(client: openai.OpenAI, server: Server) -> None:
    server.executor.delay = 0.01
    response = client.responses.create(input="weather?", background=True)
    assert response.status in {"queued", "in_progress"}
    while response.status in {"queued", "in_progress"}:
        time.sleep(0.01)
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and response.output_text == "It rains."
    events = [*client.responses.retrieve(response.id, stream=True)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    opening = ["response.created", "response.queued", "response.in_progress"]
    assert [event.type for event in events[:3]] == opening
    rest = [*client.responses.retrieve(response.id, stream=True, starting_after=4)]
    assert rest == events[5:] and events[-1].type == "response.completed"
    assert client.responses.cancel(response.id).status == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_only_background_responses_are_streamed_again(server: Server, stream: bool) -> None:
    created = server.post(PATH, input="weather?", stream=stream)
    response_id = re.findall(r"resp_\w+", created.text)[0]
    assert server.client.get(f"{PATH}/{response_id}").json()["status"] == "completed"
    again = server.client.get(f"{PATH}/{response_id}", params={"stream": "true"})
    assert again.status_code == 400 and again.json()["error"]["param"] == "stream", again.text


def test_a_background_stream_survives_its_client(client: openai.OpenAI, server: Server) -> None:
    server.executor.delay = 0.02
    server.executor.script = "It rains, " * 20
    stream = client.responses.create(input="weather?", background=True, stream=True)
    first = [next(stream) for _ in range(5)]
    stream.close()
    assert first[0].type == "response.created"
    response_id = first[0].response.id
    rest = [*client.responses.retrieve(response_id, stream=True, starting_after=4)]
    assert rest[0].sequence_number == 5 and rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == server.executor.script


def test_cancel_and_delete_while_it_runs(client: openai.OpenAI, server: Server) -> None:
    server.executor.delay = 0.02
    server.executor.script = "x" * 2000
    response = client.responses.create(input="weather?", background=True)
    with pytest.raises(openai.BadRequestError) as early:
        client.responses.create(input="and?", previous_response_id=response.id)
    assert early.value.param == "previous_response_id"
    assert client.responses.cancel(response.id).status == "cancelled"
    server.wait_idle()
    assert client.responses.retrieve(response.id).status == "cancelled"
    other = client.responses.create(input="weather?", background=True)
    client.responses.delete(other.id)
    server.wait_idle()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(other.id)


def test_nothing_runs_if_it_cannot_be_stored(start_server: Callable[..., Server], tmp_path: Path) -> None:
    config = ResponseConfig(tmp_path / "data")
    table = ResponseTable(config)
    server = start_server(responses=config)
    server.executor.script = "Hi."
    refused = server.post(PATH, input="weather?", stream=True)
    assert refused.status_code == 503 and "another server uses it" in refused.text
    assert server.service.model.engine_loop.stats().steps == 0  # type: ignore[union-attr]
    assert server.post(PATH, input="weather?", store=False).status_code == 200
    table.close()
    assert server.post(PATH, input="weather?").status_code == 200


def test_a_background_response_that_cannot_be_stored_still_ends(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(responses=ResponseConfig(tmp_path))
    server.executor.script = "Hi."
    server.post(PATH, input="weather?")
    database = sqlite3.connect(tmp_path / "responses.sqlite3")
    database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON responses WHEN NEW.ended BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    database.close()
    assert server.post(PATH, input="weather?").status_code == 500
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        response = client.responses.create(input="weather?", background=True)
        server.wait_idle()
        deadline = time.monotonic() + 10
        while (response := client.responses.retrieve(response.id)).status in {"queued", "in_progress"}:
            assert time.monotonic() < deadline
        assert response.status == "completed" and response.output_text == "Hi."
        events = [*client.responses.retrieve(response.id, stream=True)]
        assert [event.sequence_number for event in events] == [*range(len(events))]
        assert events[-1].type == "response.completed"
        assert client.responses.cancel(response.id).status == "completed"
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
    assert not server.service.responses.running


def test_nobody_else_sees_it(client: openai.OpenAI, server: Server) -> None:
    response = client.responses.create(input="weather?")
    unkept = client.responses.create(input="weather?", store=False)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="two", max_retries=0) as other:
        for owner, response_id in ((other, response.id), (client, unkept.id)):
            for call in (owner.responses.retrieve, owner.responses.delete, owner.responses.cancel):
                with pytest.raises(openai.NotFoundError):
                    call(response_id)
            with pytest.raises(openai.BadRequestError) as unknown:
                owner.responses.create(input="and?", previous_response_id=response_id)
            assert unknown.value.code == "previous_response_not_found"


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "w"}, fields]}


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"inputs": "w"}, "inputs"),
        (item(role="user", content=[IMAGE]), "input[1].content[0]"),
        (item(role="user", content=[{"type": "input_file", "file_id": "f"}]), "input[1].content[0]"),
        (item(type="reasoning", summary=[]), "input[1]"),
        (item(type="item_reference", id="msg_1"), "input[1]"),
        (item(type="function_call", call_id="c", name="f", arguments="["), "input[1].arguments"),
        (item(type="function_call_output", output="x"), "input[1].call_id"),
        (item(role="tool", content="x"), "input[1].role"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [{**WEATHER, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function", "name": "x"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}}, "text.format"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"input": "the weather " * 4000}, "input"),
    ],
)  # fmt: skip
def test_refused(server: Server, body: dict[str, Any], param: str) -> None:
    response = server.post(PATH, **{"input": "w", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_accepted_without_effect(server: Server) -> None:
    body = {
        "reasoning": {}, "truncation": "disabled", "service_tier": "auto", "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "text": {"verbosity": "low"},
        "include": ["reasoning.encrypted_content"], "parallel_tool_calls": True, "conversation": None,
    }  # fmt: skip
    assert server.post(PATH, input="w", **body).status_code == 200
