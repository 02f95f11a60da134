"""Parameters beyond OpenAI's, with vLLM's names and shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from flashlet.serving.api.parameters import generation_requests
from flashlet.serving.api.schema.completions import CompletionRequest

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "talk about the weather 日 🙂"}]


def plain(server: Server, path: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    if path == CHAT:
        body = {"messages": MESSAGES, **body}
    response = server.post(path, **{"seed": 7, "max_tokens": 12, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chunks(server: Server, path: str = COMPLETIONS, **body: Any) -> list[dict[str, Any]]:
    if path == CHAT:
        body = {"messages": MESSAGES, **body}
    events = server.stream(path, **{"seed": 7, "max_tokens": 12, **body})
    return [json.loads(event) for event in events[:-1]]


def tokens(server: Server, text: str) -> list[int]:
    ids: list[int] = server.post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    return ids


def refused(server: Server, path: str, param: str, **body: Any) -> str:
    response = server.post(path, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    message: str = response.json()["error"]["message"]
    return message


def test_fields_reach_the_engine() -> None:
    body = CompletionRequest(prompt="x", n=2, priority=-3, cache_salt="s", draft="ngram", prompt_logprobs=2)
    first, second = generation_requests(
        body, [(1, 2)], continues_prompt=True, max_tokens=1, logprobs=None, echo_logprobs=5
    )
    for request in (first, second):
        assert (request.priority, request.cache_salt, request.draft) == (-3, "s", "ngram")
    assert (first.prompt_logprobs, second.prompt_logprobs) == (5, None)  # one choice scores for all
    (default,) = generation_requests(
        CompletionRequest(prompt="x"), [(1,)], continues_prompt=True, max_tokens=1, logprobs=None
    )
    assert (default.priority, default.cache_salt, default.draft) == (0, "", "auto")
    assert default.prompt_logprobs is None


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "field",
    [
        {"priority": 2**31}, {"priority": 1.5}, {"prompt_logprobs": 21}, {"prompt_logprobs": -1},
        {"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -1}, {"cache_salt": ""}, {"cache_salt": 5},
        {"draft": "all"}, {"return_token_ids": 1}, {"prompt_logprobs": 1, "stream": True},
    ],
)  # fmt: skip
def test_refused(server: Server, path: str, field: dict[str, Any]) -> None:
    own = {"prompt": "a"} if path == COMPLETIONS else {"messages": MESSAGES}
    refused(server, path, next(iter(field)), **own, **field)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_scheduling_does_not_change_the_answer(server: Server, path: str) -> None:
    own = {"prompt": "the user"} if path == COMPLETIONS else {}
    expected = plain(server, path, **own)["choices"]
    for fields in (
        {"priority": -5},
        {"priority": 9},
        {"draft": "none"},
        {"draft": "auto", "cache_salt": "x"},
    ):
        assert plain(server, path, **own, **fields)["choices"] == expected


def test_salts_part_the_cache(server: Server) -> None:
    def cached(salt: str | None) -> int:
        answer = plain(server, prompt="a prompt only for the salts", cache_salt=salt)
        number: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return number

    assert [cached(salt) > 0 for salt in (None, None, "a", "b", "a", "b")] == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("num", [0, 1, 3])
def test_prompt_logprobs(server: Server, num: int) -> None:
    prompt = tokens(server, "the 日 user")
    choice = plain(server, prompt=prompt, prompt_logprobs=num)["choices"][0]
    echoed = plain(server, prompt=prompt, echo=True, logprobs=num, max_tokens=0)["choices"][0]["logprobs"]
    scores = choice["prompt_logprobs"]
    assert scores[0] is None and len(scores) == len(prompt) and choice["logprobs"] is None
    for token_id, score, text, value in zip(
        prompt[1:], scores[1:], echoed["tokens"][1:], echoed["token_logprobs"][1:], strict=True
    ):
        own = score[str(token_id)]
        assert own.keys() == {"logprob", "rank", "decoded_token"}
        assert (own["logprob"], own["decoded_token"]) == (value, text)
        assert len(score) in {max(1, num), num + 1}
        ranks = sorted(entry["rank"] for entry in score.values() if entry["rank"] is not None)
        assert ranks == [*range(1, num + 1)]


def test_prompt_logprobs_beside_echo_and_choices(server: Server) -> None:
    """Each list has its own number of alternatives, and every choice of a prompt the same prompt."""
    prompts = ["the user", "a 日"]
    body = {"prompt": prompts, "n": 3, "echo": True, "logprobs": 2, "max_tokens": 3, "ignore_eos": True}
    answer = plain(server, prompt_logprobs=4, **body)
    only_echo = plain(server, **body)
    for choice, expected in zip(answer["choices"], only_echo["choices"], strict=True):
        scores = choice.pop("prompt_logprobs")
        assert all(len(score) in {4, 5} for score in scores[1:])
        assert choice == expected
        assert all(len(top) == 2 for top in choice["logprobs"]["top_logprobs"][1 : len(scores)])
    chat = plain(server, CHAT, n=2, prompt_logprobs=1)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert all("prompt_logprobs" not in choice for choice in chat["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_choices_that_overtake_the_scoring_one_wait_for_it(
    start_server: Callable[..., Server], stream: bool
) -> None:
    server = start_server(engine={"prefill_chunk": 2, "max_step_tokens": 8, "max_sequences": 8})
    prompt = "a long prompt that the cache knows already"
    plain(server, prompt=prompt)
    body = {"prompt": prompt, "n": 4, "echo": True, "logprobs": 1, "max_tokens": 6, "ignore_eos": True}
    alone = [plain(server, **(body | {"n": 1, "seed": 7 + index}))["choices"][0] for index in range(4)]
    found: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in alone]
    if not stream:
        found = plain(server, **body)["choices"]
    for chunk in chunks(server, **body) if stream else []:
        (delta,) = chunk["choices"]
        choice = found[delta["index"]]
        choice["text"] += delta["text"]
        for name, values in (delta["logprobs"] or {}).items():
            choice["logprobs"].setdefault(name, []).extend(values)
    for one, expected in zip(found, alone, strict=True):
        assert (one["text"], one["logprobs"]) == (expected["text"], expected["logprobs"])
        assert one["text"].startswith(prompt)


def test_the_last_prompt_tokens(server: Server) -> None:
    ids = tokens(server, "the user and the 日 city")
    kept = plain(server, prompt=ids[-4:], echo=True, logprobs=1)
    for prompt in (ids, "the user and the 日 city"):
        cut = plain(server, prompt=prompt, truncate_prompt_tokens=4, echo=True, logprobs=1)
        assert cut["choices"] == kept["choices"] and cut["usage"]["prompt_tokens"] == 4
    whole = plain(server, prompt="the user", truncate_prompt_tokens=400, echo=True)
    assert whole["choices"] == plain(server, prompt="the user", echo=True)["choices"]
    assert plain(server, prompt="a" * 200_000, truncate_prompt_tokens=9)["usage"]["prompt_tokens"] == 9
    assert plain(server, CHAT, truncate_prompt_tokens=5)["usage"]["prompt_tokens"] == 5
    assert "512" in refused(server, COMPLETIONS, "prompt", prompt="a" * 600, truncate_prompt_tokens=513)


def test_token_ids_of_completions(server: Server) -> None:
    eos = tokens(server, "<|im_end|>")
    body = {"prompt": ["the user", "日"], "n": 2, "return_token_ids": True, "max_tokens": 90}
    answer = plain(server, **body)
    found: list[dict[str, Any]] = [{"token_ids": []} for _ in range(4)]
    for chunk in chunks(server, **body):
        (choice,) = chunk["choices"]
        one = found[choice["index"]]
        assert ("prompt_token_ids" in choice) == ("prompt_token_ids" not in one)
        one |= {name: choice[name] for name in ("prompt_token_ids",) if name in choice}
        one["token_ids"] += choice["token_ids"]
    for choice, one in zip(answer["choices"], found, strict=True):
        assert {name: choice[name] for name in one} == one
        assert choice["prompt_token_ids"] == tokens(server, body["prompt"][choice["index"] // 2])
        written = choice["token_ids"][:-1] if choice["finish_reason"] == "stop" else choice["token_ids"]
        assert server.post("/detokenize", tokens=written).json()["prompt"] == choice["text"]
        assert (choice["token_ids"][-1:] == eos) == (choice["finish_reason"] == "stop")
    assert {choice["finish_reason"] for choice in answer["choices"]} >= {"stop"}
    assert sum(len(one["token_ids"]) for one in found) == answer["usage"]["completion_tokens"]


def test_token_ids_of_chats(server: Server) -> None:
    answer = plain(server, CHAT, n=2, return_token_ids=True)
    parts = chunks(server, CHAT, n=2, return_token_ids=True)
    assert ["prompt_token_ids" in chunk for chunk in parts] == [True] + [False] * (len(parts) - 1)
    assert parts[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    for index, choice in enumerate(answer["choices"]):
        assert "prompt_token_ids" not in choice
        deltas = [part for chunk in parts for part in chunk["choices"] if part["index"] == index]
        assert [number for part in deltas for number in part.get("token_ids", ())] == choice["token_ids"]
    assert (
        sum(len(choice["token_ids"]) for choice in answer["choices"]) == answer["usage"]["completion_tokens"]
    )


def test_the_default_limit_gives_way_to_a_long_prompt(server: Server) -> None:
    for length, expected in ((490, 16), (500, 12), (511, 1)):
        answer = plain(server, prompt=[5] * length, max_tokens=None, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == expected
    refused(server, COMPLETIONS, "prompt", prompt=[5] * 512)
    assert "max_tokens" in refused(server, COMPLETIONS, "max_tokens", prompt=[5] * 500, max_tokens=16)
