"""langchain-openai: chat, streams, tools and structured output."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

openai = pytest.importorskip("langchain_openai", reason="langchain-openai runs in ./scripts/test-clients")


class Weather(BaseModel):
    """An answer with a shape."""

    sky: Literal["clear", "cloudy"]


class GetWeather(BaseModel):
    """Weather of a city."""

    city: Literal["Paris", "London"]


@pytest.fixture
def chat(url: str, model: str) -> Any:
    options: Any = {"temperature": 0, "max_tokens": 60, "max_retries": 0}
    return openai.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, **options)


def test_chat_and_stream(chat: Any) -> None:
    plain = chat.invoke("Say hello.")
    pieces = list(chat.stream("Say hello.", stream_usage=True))
    assert "".join(piece.content for piece in pieces) == plain.content
    assert plain.usage_metadata["output_tokens"] > 0
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0


def test_tools(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    question = HumanMessage("What is the weather in Paris?")
    with_tools = chat.bind_tools([GetWeather], tool_choice="required")
    call = with_tools.invoke([question])
    assert call.tool_calls and call.tool_calls[0]["args"]["city"] in {"Paris", "London"}
    streamed = None
    for piece in with_tools.stream([question]):
        streamed = piece if streamed is None else streamed + piece
    assert streamed is not None
    assert [one["args"] for one in streamed.tool_calls] == [one["args"] for one in call.tool_calls]
    results = [ToolMessage("clear sky", tool_call_id=one["id"]) for one in call.tool_calls]
    assert chat.invoke([question, call, *results]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    answer = chat.with_structured_output(Weather, method=method).invoke("How is the sky?")
    assert isinstance(answer, Weather)


def test_embeddings(url: str, model: str) -> None:
    embeddings = openai.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model=model, check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_query("hello")) > 0
