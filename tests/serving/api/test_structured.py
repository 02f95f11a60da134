"""Structured output over HTTP: the fields, their errors, and answers that match."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import validate

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.engine.live_comparison import LiveComparison

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def prompt(path: str) -> dict[str, Any]:
    return {"prompt": "go"} if path == TEXT else {"messages": [{"role": "user", "content": "go"}]}


def ask(server: Server, path: str, **body: Any) -> list[tuple[str, str]]:
    """(text, finish reason) of each choice."""
    response = server.post(path, **prompt(path), **({"max_tokens": 300} | body))
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    texts = [choice["text"] if path == TEXT else choice["message"]["content"] for choice in choices]
    return [(text, choice["finish_reason"]) for text, choice in zip(texts, choices, strict=True)]


def refused(server: Server, path: str = CHAT, **body: Any) -> dict[str, Any]:
    response = server.post(path, **prompt(path), **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept(server: Server, path: str, seed: int) -> None:
    wanted = (
        {"response_format": schema_format(PERSON)},
        {"guided_json": PERSON},
        {"guided_json": json.dumps(PERSON)},
    )
    answers = [ask(server, path, seed=seed, **fields) for fields in wanted]
    assert answers[0] == answers[1] == answers[2]
    ((text, reason),) = answers[0]
    assert reason == "stop"
    validate(json.loads(text), PERSON)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_json_object_is_an_object(server: Server, path: str) -> None:
    for text, reason in ask(server, path, response_format={"type": "json_object"}, n=6, seed=1):
        assert reason == "stop"
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_guided_fields(server: Server, path: str) -> None:
    for text, _ in ask(server, path, guided_regex=r"[a-f]{3}\d+!", n=4, seed=1):
        assert re.fullmatch(r"[a-f]{3}\d+!", text) or len(text) > 200
    choices = ["yes", "no", "yes, but 日"]
    assert {text for text, _ in ask(server, path, guided_choice=choices, n=8, seed=1)} <= set(choices)
    for text, _ in ask(server, path, guided_grammar='start: "(" start ")" | "x"', n=4, seed=1):
        assert re.fullmatch(r"(\(*)x(\)*)", text) and text.count("(") == text.count(")")


def test_free_text_formats(server: Server) -> None:
    free = ask(server, CHAT, seed=1, max_tokens=20)
    assert ask(server, CHAT, seed=1, max_tokens=20, response_format={"type": "text"}) == free
    assert ask(server, CHAT, seed=1, max_tokens=20, response_format=None, guided_regex=None) == free
    both = {"response_format": {"type": "text"}, "guided_choice": ["a"]}
    assert ask(server, CHAT, **both) == [("a", "stop")]


@pytest.mark.parametrize("fields", [
    {"response_format": schema_format(PERSON)}, {"guided_choice": ["日本", "🙂🙂"]},
    {"guided_regex": "[é日🙂]{5}"},
])  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_equals_the_plain_answer(server: Server, path: str, fields: dict[str, Any]) -> None:
    body = {**prompt(path), **fields, "seed": 3, "max_tokens": 200}
    events = [json.loads(data) for data in server.stream(path, **body) if data != "[DONE]"]
    choices = [choice for event in events for choice in event["choices"]]
    parts = [choice["text"] if path == TEXT else choice["delta"].get("content", "") for choice in choices]
    assert [("".join(parts), choices[-1]["finish_reason"])] == ask(
        server, path, seed=3, max_tokens=200, **fields
    )


def test_an_answer_does_not_depend_on_its_batch_mates(server: Server) -> None:
    bodies: list[dict[str, Any]] = [
        {"response_format": schema_format(PERSON)},
        {"response_format": {"type": "json_object"}},
        {"guided_choice": ["alpha", "beta", "gamma"]},
        {"guided_regex": "[a-z]{20}"},
        {},
        {"guided_regex": "[a-z]{20}", "min_tokens": 10},
    ]
    alone = [ask(server, CHAT, seed=5, max_tokens=60, **body) for body in bodies]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(
            target=lambda i=index: together.update({i: ask(server, CHAT, seed=5, max_tokens=60, **bodies[i])})
        )
        for index in range(len(bodies))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(len(bodies))] == alone


def test_drafts_do_not_change_an_answer(
    server: Server,
    start_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    free_costs: StepCosts,
) -> None:
    drafting = start_server(engine={"draft": "ngram"})
    drafter = drafting.service.model.engine_loop.engine.scheduler.drafter  # type: ignore[union-attr]
    monkeypatch.setattr(LiveComparison, "step_done", lambda *args, **kwargs: None)
    drafter.costs = free_costs  # type: ignore[union-attr]
    for fields in ({"guided_regex": "(abcd ){30}[xyz]*"}, {"response_format": schema_format(PERSON)}):
        body = {**fields, "seed": 2, "max_tokens": 180}
        assert ask(drafting, CHAT, **body) == ask(server, CHAT, **body)
    body = prompt(CHAT) | {"guided_regex": "(abcd ){30}", "max_tokens": 180}
    usage = drafting.post(CHAT, **body).json()["usage"]
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] > 20


def test_a_token_limit_cuts_the_answer(server: Server) -> None:
    assert ask(server, CHAT, guided_regex="[a-z]{20}", max_tokens=1)[0][1] == "length"
    ((text, reason),) = ask(server, CHAT, guided_regex="[a-c]", max_tokens=1)
    assert (len(text), reason) == (1, "length")


def test_other_parameters(server: Server) -> None:
    """Stop strings and tokens still end an answer; what would keep it going gives way to the grammar."""
    assert ask(server, CHAT, guided_choice=["abc"], stop=["c"]) == [("ab", "stop")]
    assert ask(server, CHAT, guided_choice=["abc"], ignore_eos=True) == [("abc", "stop")]
    assert ask(server, CHAT, guided_choice=["abc"], min_tokens=50) == [("abc", "stop")]
    assert ask(server, CHAT, guided_choice=["abc"], min_tokens=50, ignore_eos=True) == [("abc", "stop")]
    a, b, z = (server.service.model.tokenizer.encode(text, False)[0] for text in "abz")  # type: ignore[union-attr]
    assert ask(server, CHAT, guided_choice=["abc"], stop_token_ids=[b])[0] == ("a", "stop")
    assert ask(server, CHAT, guided_choice=["abc"], stop_token_ids=[a], min_tokens=2)[0][1] == "stop"
    assert ask(server, CHAT, guided_choice=["abc"], logit_bias={str(z): 100, str(a): -100}) == [
        ("abc", "stop")
    ]
    ((text, _),) = ask(server, CHAT, guided_regex="a{0,60}", ignore_eos=True, max_tokens=100)
    assert text == "a" * 60


def test_logprobs_leave_out_the_end(server: Server) -> None:
    body = prompt(CHAT) | {"guided_choice": ["abc"], "ignore_eos": True, "logprobs": True}
    content = server.post(CHAT, **body).json()["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == "abc"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": schema_format({"properties": {"a": {"not": {}}}})}, "response_format",
         'response_format: at $.properties.a: Unimplemented keys: ["not"]'),
        ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 1}}, "guided_json", "minimum (3)"),
        ({"guided_json": "{"}, "guided_json", "expected JSON"),
        ({"guided_json": "[]"}, "guided_json", "an object"),
        ({"guided_regex": "("}, "guided_regex", "guided_regex: "),
        ({"guided_regex": "a\\"}, "guided_regex", "backslash"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "guided_grammar: "),
        ({"guided_choice": []}, "guided_choice", ""),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]", ""),
        ({"guided_choice": "a"}, "guided_choice", ""),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "together with guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": []}}, "response_format", "json_schema"),
        ({"response_format": "json_object"}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "required"),
        ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more", "unknown"),
        ({"response_format": schema_format(5)}, "response_format.json_schema.schema", ""),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(
    server: Server, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refused(server, path, **fields)
    assert error["param"] == param
    assert message in error["message"]


def test_a_hostile_schema_holds_up_nobody(server: Server) -> None:
    """One takes for ever to compile, one fails while it is followed; both end with an error of their own."""
    errors: list[dict[str, Any]] = []
    slow: dict[str, Any] = {"guided_json": {"type": "integer", "multipleOf": 99_999_989}}
    thread = threading.Thread(target=lambda: errors.append(refused(server, **slow)))
    thread.start()
    for _ in range(3):
        assert ask(server, CHAT, max_tokens=10)
    error = refused(server, guided_regex=r"(\w+\s?){1,400}", max_tokens=300, seed=1, ignore_eos=True)
    assert error["code"] == "invalid_grammar"
    thread.join()
    assert "too much time" in errors[0]["message"]
    assert ask(server, CHAT, guided_choice=["fine"]) == [("fine", "stop")]


def test_a_grammar_that_fails_late_ends_the_stream_with_an_error(server: Server) -> None:
    regex = r"abcabcabc(\w+\s?){1,400}"
    events = server.stream(CHAT, **prompt(CHAT), guided_regex=regex, max_tokens=300, ignore_eos=True)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "invalid_grammar"
    assert len(events) > 5
