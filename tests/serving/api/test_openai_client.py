"""openai-python against the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

MESSAGES = [{"role": "user", "content": "talk about the weather"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_plain_and_streamed(client: openai.OpenAI) -> None:
    fields = {"model": "toy", "messages": MESSAGES, "seed": 3, "max_tokens": 20}
    answer = client.chat.completions.create(**fields)  # type: ignore[call-overload]
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    chunks = [*client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})]  # type: ignore[call-overload]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        == answer.choices[0].message.content
    )
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_stream_helper_and_choices(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="toy", messages=MESSAGES, seed=3, n=2) as stream:  # type: ignore[arg-type]
        final = stream.until_done().get_final_completion()
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, seed=3, n=2)  # type: ignore[arg-type]
    assert [choice.message.content for choice in final.choices] == [
        choice.message.content for choice in answer.choices
    ]
    assert [choice.message.role for choice in final.choices] == ["assistant"] * 2


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="toy", messages=MESSAGES, seed=3, max_tokens=5, logprobs=True, top_logprobs=4  # type: ignore[arg-type]
    )  # fmt: skip
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 4


def test_legacy_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="toy", prompt=["the user", "a"], n=2, logprobs=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    chunks = [*client.completions.create(model="toy", prompt="the user", max_tokens=4, stream=True)]
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy", "alias/toy"]
    assert client.models.retrieve("alias/toy").object == "model"


def test_errors_have_their_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="toy", messages=MESSAGES, temperature=3)  # type: ignore[arg-type]
    assert bad.value.param == "temperature" and bad.value.code == "invalid_value" and bad.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="toy", prompt="a" * 600, stream=True)
    assert long.value.code == "context_length_exceeded"
