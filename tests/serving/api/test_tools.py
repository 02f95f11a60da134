"""Answers with calls over HTTP. A script says what the model would write; grammars may overrule it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from weather_tools import CHAT, NOW, PARIS, TOOLS, USER, WEATHER_CHOICE, call

from flashlet.serving.api.tools import convention
from flashlet.serving.api.tools.convention import MISTRAL

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

# Which convention it is follows from a few words; how prompts look is tested in test_tool_requests.py.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}%s{% endif %}assistant{{ '\\n' }}"
)
HERMES_TEMPLATE = TEMPLATE.replace("%s", '<tool_call>{"name": ..., "arguments": ...}')
LLAMA_TEMPLATE = TEMPLATE.replace("%s", '{"name": ..., "parameters": ...}')
MISTRAL_TEMPLATE = TEMPLATE.replace("%s", "[TOOL_CALLS]")


@pytest.fixture(scope="module")
def shared_server(start_server: Callable[..., Server]) -> Server:
    return start_server(context_length=8192)


def choices(server: Server, script: str, **body: Any) -> list[dict[str, Any]]:
    """The choices of a plain answer, which must equal those of the streamed one."""
    server.executor.script = script
    body = {"messages": [USER], "tools": TOOLS, **body}
    response = server.post(CHAT, **body)
    assert response.status_code == 200, response.text
    plain: list[dict[str, Any]] = response.json()["choices"]
    events = server.stream(CHAT, **body)
    assert events.pop() == "[DONE]"
    assert [without_ids(choice) for choice in plain] == [
        without_ids(choice) for choice in assembled([json.loads(event) for event in events])
    ]
    for choice in plain:
        check_calls(choice, body["tools"])
    return plain


def choice_of(server: Server, script: str, **body: Any) -> dict[str, Any]:
    (choice,) = choices(server, script, **body)
    return choice


def without_ids(choice: dict[str, Any]) -> Any:
    return json.loads(re.sub(r"call_[0-9a-f]{24}", "call", json.dumps(choice)))


def check_calls(choice: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    """Every call of a finished answer is one of a tool, with arguments that its schema accepts."""
    calls = choice["message"].get("tool_calls", [])
    assert "<tool_call>" not in (choice["message"]["content"] or "")
    assert (choice["finish_reason"] == "tool_calls") == bool(calls) or choice["finish_reason"] == "length"
    assert len({call["id"] for call in calls}) == len(calls)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    for item in calls:
        assert item.keys() == {"id", "type", "function"} and item["type"] == "function"
        assert re.fullmatch(r"call_[0-9a-f]{24}", item["id"])
        if choice["finish_reason"] == "tool_calls":
            schema = schemas[item["function"]["name"]] or {"type": "object", "maxProperties": 0}
            jsonschema.validate(json.loads(item["function"]["arguments"]), schema)


def assembled(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choices put together from chunks, by the rules of wire.md."""
    found: dict[int, dict[str, Any]] = {}
    for part in (choice for chunk in chunks for choice in chunk["choices"]):
        delta, index = part["delta"], part["index"]
        if index not in found:
            assert delta == {"role": "assistant", "content": None}
            message = {"role": "assistant", "content": None, "refusal": None}
            found[index] = {"index": index, "message": message, "logprobs": None, "finish_reason": None}
            continue
        choice = found[index]
        assert choice["finish_reason"] is None and "role" not in delta
        choice["finish_reason"] = part["finish_reason"]
        if part["logprobs"]:
            choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
            choice["logprobs"]["content"] += part["logprobs"]["content"]
        message = choice["message"]
        if "content" in delta:
            assert not message.get("tool_calls")
            message["content"] = (message["content"] or "") + delta["content"]
        for item in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if item["index"] == len(calls):
                assert item["function"]["arguments"] == ""
                calls.append({name: item[name] for name in ("id", "type", "function")})
            else:
                assert item.keys() == {"index", "function"} and item["index"] == len(calls) - 1
                assert item["function"].keys() == {"arguments"} and item["function"]["arguments"]
                calls[-1]["function"]["arguments"] += item["function"]["arguments"]
    return [found[index] for index in sorted(found)]


def functions(choice: dict[str, Any]) -> list[tuple[str, str]]:
    calls = choice["message"].get("tool_calls", [])
    return [(item["function"]["name"], item["function"]["arguments"]) for item in calls]


def test_a_call_and_its_shape(server: Server) -> None:
    choice = choice_of(server, call("get_weather", PARIS))
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert functions(choice) == [("get_weather", PARIS)]


def test_text_before_calls_and_several_calls(server: Server) -> None:
    script = "Let me look. \n" + call("get_weather", PARIS) + "\n" + call("now", "{}")
    choice = choice_of(server, script)
    assert choice["message"]["content"] == "Let me look."
    assert functions(choice) == [("get_weather", PARIS), ("now", "{}")]
    alone = choice_of(server, script, parallel_tool_calls=False)
    assert functions(alone) == [("get_weather", PARIS)] and alone["finish_reason"] == "tool_calls"


def test_text_alone(server: Server) -> None:
    for text in ("Sunny, 20 °C 🙂.", "a <tool_ca", "<b>日</b>", "", " \n"):
        choice = choice_of(server, text)
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
        assert choice["finish_reason"] == "stop"


def test_wrong_calls_are_put_right(server: Server) -> None:
    """The grammar replaces what is not allowed; the arguments validate in any case."""
    for script in (
        call("unknown", "{}"),
        call("get_weather", "{}"),
        call("get_weather", '{"city": 3, "other": [1]}'),
        call("get_weather", '{"days": "x"'),
        "<tool_call>no",
        call("now", '{"x": 1}'),
        call("now", "{}") + " and more text",
    ):
        choice = choice_of(server, script, max_tokens=150)
        assert functions(choice) and choice["finish_reason"] in {"tool_calls", "length"}
    assert functions(choice) == [("now", "{}")]


@pytest.mark.parametrize("choice", ["required", WEATHER_CHOICE])
def test_forced_calls(server: Server, choice: Any) -> None:
    answer = choice_of(server, call("get_weather", PARIS), tool_choice=choice)
    assert functions(answer) == [("get_weather", PARIS)] and answer["message"]["content"] is None
    unwilling = choice_of(server, "I would rather not.", tool_choice=choice, max_tokens=150)
    assert functions(unwilling)[0][0] == "get_weather"


def test_a_named_function_is_called_once(server: Server) -> None:
    twice = call("now", "{}") + "\n" + call("now", "{}")
    assert len(functions(choice_of(server, twice))) == 2
    named = {"type": "function", "function": {"name": "now"}}
    assert functions(choice_of(server, twice, tool_choice=named)) == [("now", "{}")]


def test_calls_in_a_row_end(server: Server) -> None:
    server.executor.script = "\n".join([call("now", "{}")] * 40)
    (choice,) = server.post(CHAT, messages=[USER], tools=TOOLS).json()["choices"]
    assert len(functions(choice)) == 32 and choice["finish_reason"] == "tool_calls"


def test_no_tools_no_calls(server: Server) -> None:
    text = call("now", "{}")
    server.executor.script = text
    answer = server.post(CHAT, messages=[USER]).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    answer = server.post(CHAT, messages=[USER], tools=TOOLS, tool_choice="none", max_tokens=200).json()
    message = answer["choices"][0]["message"]
    assert "tool_calls" not in message and message["content"] and "<tool_call>" not in message["content"]


def test_nasty_arguments(server: Server) -> None:
    value = 'a "b" </tool_call> \\ {"}]\n<tool_call>\n é日🙂\u2028'
    arguments = json.dumps({"city": value}, ensure_ascii=False)
    choice = choice_of(server, "ok " + call("get_weather", arguments))
    assert functions(choice) == [("get_weather", arguments)]
    assert json.loads(functions(choice)[0][1]) == {"city": value}


def test_max_tokens_cut_calls(server: Server) -> None:
    script = "Hm. " + call("get_weather", PARIS)
    whole = functions(choice_of(server, script))[0][1]
    for limit in range(1, len(script) + 2, 3):
        choice = choice_of(server, script, max_tokens=limit)
        assert choice["finish_reason"] == ("length" if limit <= len(script) else "tool_calls")
        assert "Hm.".startswith((choice["message"]["content"] or "").rstrip())
        for name, arguments in functions(choice):
            assert name == "get_weather" and whole.startswith(arguments)


def test_stop_strings_end_text_but_no_calls(server: Server) -> None:
    script = "Well, now. " + call("get_weather", PARIS)
    choice = choice_of(server, script, stop=["\n", "Paris", '"'])
    assert choice["message"]["content"] == "Well, now." and functions(choice) == [("get_weather", PARIS)]
    choice = choice_of(server, script, stop=[", n", "Paris"])
    assert choice["message"]["content"] == "Well" and choice["finish_reason"] == "stop"
    choice = choice_of(server, script, stop=["Paris"], tool_choice="required", max_tokens=150)
    assert functions(choice)[0][0] == "get_weather"


def test_several_choices_and_logprobs(server: Server) -> None:
    script = "So: " + call("get_weather", PARIS)
    answers = choices(server, script, n=3, logprobs=True, top_logprobs=2)
    ids = {item["id"] for choice in answers for item in choice["message"]["tool_calls"]}
    assert len(answers) == len(ids) == 3
    for choice in answers:
        tokens = choice["logprobs"]["content"]
        assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == script


def test_token_ids_beside_calls(server: Server) -> None:
    server.executor.script = call("now", "{}")
    body = {"messages": [USER], "tools": TOOLS, "return_token_ids": True}
    answer = server.post(CHAT, **body).json()
    (plain,) = answer["choices"]
    events = [json.loads(event) for event in server.stream(CHAT, **body)[:-1]]
    chunks = [event["choices"][0] for event in events]
    assert [token_id for chunk in chunks for token_id in chunk.get("token_ids", [])] == plain["token_ids"]
    assert events[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert len(plain["token_ids"]) == len(server.executor.script) + 1


def test_response_format_beside_tools(server: Server) -> None:
    schema = {"type": "object", "properties": {"t": {"type": "string"}}, "required": ["t"]}
    body = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    text = '{"t": "<tool_call> 日"}'
    server.executor.script = text
    for choice in ("auto", "none"):
        answer = server.post(CHAT, messages=[USER], tools=TOOLS, tool_choice=choice, **body).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert functions(choice_of(server, call("get_weather", PARIS), **body)) == [("get_weather", PARIS)]
    assert functions(choice_of(server, text, tool_choice="required", max_tokens=150, **body))
    body["response_format"]["json_schema"]["schema"] = {"type": "foo"}
    response = server.post(CHAT, messages=[USER], tools=TOOLS, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "response_format"


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **parameters}}


def test_arguments_schemas(server: Server) -> None:
    for parameters, arguments in (
        (None, "{}"),
        ({}, "{}"),
        ({"type": "object", "properties": {}}, "{}"),
        ({"type": "object"}, '{"any": [1, null]}'),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, '{"a": 5}'),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"x y": 1}'),
        ({"anyOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}]}, '{"a": 1}'),
        (
            {"properties": {'a"b\\é<': {"enum": ["</tool_call>", "\n"]}}},
            json.dumps({'a"b\\é<': "</tool_call>"}, ensure_ascii=False),
        ),
    ):
        for strict in (True, False):
            tools = [tool("f", parameters=parameters, strict=strict)]
            assert functions(choice_of(server, call("f", arguments), tools=tools)) == [("f", arguments)]


def test_many_and_huge_tools(server: Server) -> None:
    tools = [tool(f"t{i}", parameters={"properties": {"a": {"type": "integer"}}}) for i in range(100)]
    server.executor.script = call("t57", '{"a": 1}')
    choice = choice_of(server, call("t57", '{"a": 1}'), tools=tools)
    assert functions(choice) == [("t57", '{"a": 1}')]
    for huge in ({"enum": ["x" * 1_000_000]}, {"description": "d" * 1_000_000, "type": "integer"}):
        response = server.post(
            CHAT, messages=[USER], tools=[NOW, tool(parameters={"properties": {"a": huge}})]
        )
        assert response.status_code == 400 and response.json()["error"]["param"] in {
            "tools[1].function.parameters", "messages",
        }  # fmt: skip


def test_hermes_convention(start_server: Callable[..., Server]) -> None:
    server = start_server(context_length=4096, template=HERMES_TEMPLATE)
    choice = choice_of(server, "Yes.\n" + call("get_weather", PARIS))
    assert functions(choice) == [("get_weather", PARIS)] and choice["message"]["content"] == "Yes."


def test_llama_convention(start_server: Callable[..., Server]) -> None:
    server = start_server(context_length=4096, template=LLAMA_TEMPLATE)
    script = f'{{"name": "get_weather", "parameters": {PARIS}}}'
    assert functions(choice_of(server, script + " more")) == [("get_weather", PARIS)]
    assert functions(choice_of(server, script, tool_choice="required")) == [("get_weather", PARIS)]
    assert choice_of(server, "text " + script)["message"]["content"] == "text " + script
    response = server.post(CHAT, messages=[USER], tools=TOOLS, response_format={"type": "json_object"})
    assert response.status_code == 400 and response.json()["error"]["param"] == "response_format"


def test_mistral_convention(start_server: Callable[..., Server]) -> None:
    server = start_server(context_length=4096, template=MISTRAL_TEMPLATE)
    calls = [
        f'{{"name": "{name}", "arguments": {text}}}' for name, text in (("get_weather", PARIS), ("now", "{}"))
    ]
    choice = choice_of(server, f"Ok. [TOOL_CALLS] [{', '.join(calls)}]")
    assert functions(choice) == [("get_weather", PARIS), ("now", "{}")]
    assert choice["message"]["content"] == "Ok."


def test_a_special_token_begins_calls(
    start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    special = replace(MISTRAL, markers=("endoftext",), trigger="<|endoftext|>")
    monkeypatch.setattr(convention, "_NATIVE", (special,))
    server = start_server(context_length=4096, template=MISTRAL_TEMPLATE + "{# endoftext #}")
    script = f'<|endoftext|> [{{"name": "get_weather", "arguments": {PARIS}}}]'
    forced = choice_of(server, script, tool_choice="required")
    assert functions(forced) == [("get_weather", PARIS)] and forced["message"]["content"] is None
    # As text it is no trigger.
    assert choice_of(server, script)["message"]["content"] == script
