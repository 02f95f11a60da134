"""/v1/embeddings: forms, numbers, and what an SDK makes of them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from flashlet.model.executor import ExecutorOptions, create_executor
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent

if TYPE_CHECKING:
    from flashlet.model.tokenizer import Tokenizer
    from tests.serving.api.conftest import Server

EMBEDDINGS = "/v1/embeddings"
HIDDEN = 8


def embed(server: Server, texts: Any, **body: Any) -> dict[str, Any]:
    response = server.post(EMBEDDINGS, input=texts, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def vectors(server: Server, texts: Any, **body: Any) -> NDArray[np.float32]:
    data = embed(server, texts, **body)["data"]
    assert [item["index"] for item in data] == [*range(len(data))]
    return np.array([item["embedding"] for item in data], np.float32)


def test_shape_usage_and_length(server: Server) -> None:
    answer = embed(server, "the user")
    (item,) = answer["data"]
    assert answer.keys() == {"object", "data", "model", "usage"} and answer["object"] == "list"
    assert item["object"] == "embedding" and len(item["embedding"]) == HIDDEN and answer["model"] == "toy"
    count = server.post("/tokenize", prompt="the user").json()["count"]
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert np.linalg.norm(item["embedding"]) == pytest.approx(1, abs=1e-6)


def test_it_is_the_normalized_mean(server: Server) -> None:
    ids = [5, 9, 3, 7]
    rows = [np.random.default_rng(ids[:end]).normal(size=HIDDEN).astype(np.float32) for end in range(1, 5)]
    mean = np.mean(rows, axis=0, dtype=np.float64)
    assert np.allclose(vectors(server, ids)[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_forms_of_input_are_the_same(server: Server) -> None:
    ids = server.post("/tokenize", prompt="the user").json()["tokens"]
    found = {vectors(server, form).tobytes() for form in ("the user", ["the user"], ids, [ids])}
    assert len(found) == 1


def test_base64_is_the_same_numbers(server: Server) -> None:
    texts = ["the user", "日 🙂", "a" * 300]
    packed = embed(server, texts, encoding_format="base64")["data"]
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed]
    assert np.array_equal(found, vectors(server, texts, encoding_format="float"))


def test_dimensions(server: Server) -> None:
    whole, cut = vectors(server, "the user")[0], vectors(server, "the user", dimensions=3)[0]
    assert np.allclose(cut, whole[:3] / np.linalg.norm(whole[:3]), atol=1e-6)
    assert np.array_equal(vectors(server, "the user", dimensions=HIDDEN)[0], whole)


def test_batches_do_not_change_a_bit(start_server: Callable[..., Server], server: Server) -> None:
    """More texts than run at a time, long and short, in chunks, beside an answer."""
    rng = np.random.default_rng(0)
    texts = [[int(i) for i in rng.integers(3, 250, rng.integers(1, 120))] for _ in range(40)]
    small = start_server(engine={"prefill_chunk": 3, "max_step_tokens": 16, "max_sequences": 4})
    together = vectors(small, texts)
    assert np.array_equal(together, np.concatenate([vectors(server, [text]) for text in texts]))
    small.wait_idle()


def test_the_last_tokens_of_a_text(server: Server) -> None:
    ids = [*range(20, 60)]
    assert np.array_equal(vectors(server, ids, truncate_prompt_tokens=7), vectors(server, ids[-7:]))
    assert embed(server, "a" * 5000, truncate_prompt_tokens=512)["usage"]["prompt_tokens"] == 512


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a", ""]}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [99999]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": HIDDEN + 1}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "temperature": 1}, "temperature"),
        ({"input": "a", "model": "other"}, "model"),
    ],
)
def test_refused(server: Server, body: dict[str, Any], param: str) -> None:
    response = server.post(EMBEDDINGS, **body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


def test_too_long(server: Server) -> None:
    for text in ([5] * 513, "a" * 200_000, ["b", "a" * 600]):
        response = server.post(EMBEDDINGS, input=text)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        assert "512" in error["message"]
    assert embed(server, [5] * 512)["usage"]["prompt_tokens"] == 512


def test_openai_client(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    answer = client.embeddings.create(model="toy", input=["the user", "日"], user="me")
    assert np.array_equal(
        np.array([item.embedding for item in answer.data], np.float32), vectors(server, ["the user", "日"])
    )
    assert len(client.embeddings.create(model="toy", input="a", dimensions=2).data[0].embedding) == 2


@pytest.fixture(params=["native", "torch"])
def real_engine(
    request: pytest.FixtureRequest, tiny_model_path: Path, tokenizer: Tokenizer
) -> Iterator[Callable[..., Engine]]:
    executor = create_executor(
        tiny_model_path, ExecutorOptions(backend=request.param, kv_cache_bytes=1 << 20, threads=1)
    )
    yield lambda **options: Engine(executor, tokenizer, EngineConfig(**options))
    executor.close()


def test_real_models_embed_alike_in_any_batch(real_engine: Callable[..., Engine]) -> None:
    rng = np.random.default_rng(1)
    prompts = [tuple(int(i) for i in rng.integers(3, 250, size)) for size in (1, 30, 7, 50, 23)]

    def embeddings(engine: Engine, texts: list[tuple[int, ...]]) -> list[bytes]:
        sequences = [engine.submit(GenerationRequest(text, max_tokens=0, embed=True)) for text in texts]
        found = {}
        while engine.has_work:
            for sequence, event in engine.step():
                assert isinstance(event, TokenEvent) and event.embedding is not None
                found[sequence] = event.embedding.tobytes()
        return [found[sequence] for sequence in sequences]

    alone = [embeddings(real_engine(), [prompt])[0] for prompt in prompts]
    together = embeddings(real_engine(max_step_tokens=24, max_sequences=4), prompts)
    assert together == alone and len(set(alone)) == len(prompts)
    assert all(np.isfinite(np.frombuffer(one)).all() for one in alone)


def test_a_client_that_leaves(server: Server) -> None:
    async def leave() -> None:
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=0.1)
        with pytest.raises(openai.APITimeoutError):
            await client.embeddings.create(model="toy", input=["a" * 400] * 40)
        await client.close()

    server.executor.delay = 0.05
    asyncio.run(leave())
    server.wait_idle()
