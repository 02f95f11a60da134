"""A stream's text is the plain answer's, byte for byte, whatever stops it and whatever alphabet it has."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from flashlet.serving.api import sse

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PIECES = ["a", "b", "f", " ", "é", "日", "🙂", "日日"]  # what the scripted model writes


def random_body(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "seed": rng.randrange(1000),
        "max_tokens": rng.randint(1, 70),
        "n": rng.choice([1, 2]),
    }
    stops = ["".join(rng.choices(PIECES, k=rng.randint(1, 3))) for _ in range(rng.randint(0, 4))]
    body["stop"] = rng.choice([stops, stops[:1] or None, stops[0] if stops else None])
    body["include_stop_str_in_output"] = rng.random() < 0.3
    body["ignore_eos"] = rng.random() < 0.5
    body["return_token_ids"] = True
    return body


def stopped(text: str, body: dict[str, Any]) -> str:
    """Where `text`, written without stop strings, should have been cut."""
    given = body["stop"] or []
    stops = [given] if isinstance(given, str) else given
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        return text
    start, length = min(
        (text[: min(ends)].find(stop), len(stop)) for stop in stops if stop in text[: min(ends)]
    )
    return text[: start + length] if body["include_stop_str_in_output"] else text[:start]


def plain_choices(server: Server, path: str, body: dict[str, Any]) -> list[tuple[str, str, list[int]]]:
    answer = server.post(path, **body)
    assert answer.status_code == 200, answer.text
    return [
        (
            choice["message"]["content"] if path == CHAT else choice["text"],
            choice["finish_reason"],
            choice["token_ids"],
        )
        for choice in answer.json()["choices"]
    ]


def streamed_choices(server: Server, path: str, body: dict[str, Any]) -> list[tuple[str, str, list[int]]]:
    texts, reasons = [""] * body["n"], [""] * body["n"]
    ids: list[list[int]] = [[] for _ in texts]
    *events, done = server.stream(path, **body)
    assert done == "[DONE]"
    for event in events:
        (choice,) = json.loads(event)["choices"]
        index = choice["index"]
        assert not reasons[index]
        assert len(choice.get("token_ids", ())) <= 1, "one token per chunk"
        texts[index] += choice["delta"].get("content", "") if path == CHAT else choice["text"]
        ids[index] += choice.get("token_ids", ())
        reasons[index] = choice["finish_reason"] or ""
    return list(zip(texts, reasons, ids, strict=True))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_streams_equal_plain_answers(server: Server, path: str) -> None:
    rng = random.Random(path)
    prompt = (
        {"prompt": "the user"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "日"}]}
    )
    num_cut = 0
    for _ in range(20):
        body = {**prompt, **random_body(rng)}
        plain = plain_choices(server, path, body)
        assert streamed_choices(server, path, body) == plain, body
        free = plain_choices(server, path, body | {"stop": None})
        for (text, reason, _), (whole, whole_reason, _) in zip(plain, free, strict=True):
            expected = stopped(whole, body)
            assert text == expected, body
            assert reason == (
                "stop"
                if stopped(whole, body | {"include_stop_str_in_output": False}) != whole
                else whole_reason
            )
            num_cut += text != whole
    assert num_cut > 5


def test_silence_is_broken_in_time() -> None:
    assert 0 < sse.KEEPALIVE < 10
