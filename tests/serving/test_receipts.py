"""Receipts of real servers: answers made with drafts, replayed without; a canary that does not match."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashlet.serving.api.app import build_app
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.loaded_model import LoadedModel
from flashlet.serving.api.service import Service
from flashlet.serving.config import MemoryAmount
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.engine_loop import EngineLoop
from flashlet.serving.loading import LoadOptions, load_engine

SERVE = [sys.executable, "-m", "flashlet.serving.cli", "serve"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORDS = ("the weather", "in the city", "the user", "and the assistant", "talk about")
NUM_ANSWERS = 100

Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def serve(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serves the tiny model with a cache of its own."""
    folder = tmp_path_factory.mktemp("receipts")

    @contextmanager
    def serving(draft: str, answers: Callable[[httpx.Client], bool]) -> Iterator[httpx.Client]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [*SERVE, str(tiny_model_path), "--port", str(port), "--threads", "1", "--draft", draft]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLASHLET_CACHE", str(folder))
            patch.setenv("FLASHLET_HOME", str(folder))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                client.headers["x-cache"] = str(folder)
                _wait(client, process, answers)
                yield client
        finally:
            process.terminate()
            process.communicate()

    return serving


def _wait(
    client: httpx.Client, process: subprocess.Popen[str], answers: Callable[[httpx.Client], bool]
) -> None:
    deadline = time.monotonic() + 100
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            if answers(client):
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.02)


def is_ready(client: httpx.Client) -> bool:
    return client.get("/health").status_code == 200


def request(number: int) -> tuple[str, dict[str, Any]]:
    """Every second one a chat; of four, one greedy, one with a seed, and one whose seed the server chose."""
    text = " ".join(WORDS[(number + step) % len(WORDS)] for step in range(3 + number % 7))
    body: dict[str, Any] = {"max_tokens": 24 + number % 9, "ignore_eos": True}
    body |= [{"temperature": 0}, {"seed": number}, {"temperature": 0.7}, {"seed": -number, "n": 2}][
        number % 4
    ]
    if number % 3 == 0:
        body["return_token_ids"] = True
    if number % 2:
        return COMPLETIONS, body | {"prompt": f"{text} {text}"}
    return CHAT, body | {"messages": [{"role": "user", "content": text}]}


async def record(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
    """A request, its answer and its seed, as /v1/verify takes them."""
    endpoint, body = request(number)
    response = await client.post(endpoint, json=body)
    assert response.status_code == 200, response.text
    return {
        "endpoint": endpoint, "request": body, "answer": response.json(),
        "seed": None if "seed" in body else int(response.headers["x-flashlet-seed"]),
    }  # fmt: skip


async def record_all(model: LoadedModel) -> list[dict[str, Any]]:
    """All requests at once."""
    service = Service(ServerConfig(("tiny-llama",)), model)
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=None) as client:
        return await asyncio.gather(*(record(client, number) for number in range(NUM_ANSWERS)))


def test_answers_made_under_load_with_drafts_are_replayed_without(
    serve: Serve, tiny_model_path: Path, speculating: Callable[[Engine], Engine]
) -> None:
    options = LoadOptions(threads=1, kv_cache=MemoryAmount(1 << 22), draft="ngram")
    loaded = load_engine(tiny_model_path, options)
    model = LoadedModel.of("tiny-llama", loaded, EngineLoop(loaded.engine))
    speculating(loaded.engine)
    model.engine_loop.start()
    answers = asyncio.run(record_all(model))
    stats = model.engine_loop.stats()
    assert stats.draft_tokens > stats.accepted_tokens > 0
    model.engine_loop.stop()
    loaded.executor.close()
    with serve("none", is_ready) as client:
        for answer in answers:
            result = client.post("/v1/verify", json=answer).json()
            assert result["identical"] and result["fingerprint"]["match"], (answer, result)
        planted = next(item for item in answers if "token_ids" in item["answer"]["choices"][0])
        ids = planted["answer"]["choices"][0]["token_ids"]
        ids[11] = (ids[11] + 1) % 300
        difference = client.post("/v1/verify", json=planted).json()["first_difference"]
        assert (difference["choice"], difference["token_index"]) == (0, 11)
        assert difference["expected"] == ids[11] != difference["got"]


def test_a_canary_that_does_not_match_keeps_the_server_from_answering(serve: Serve) -> None:
    with serve("ngram", is_ready) as client:
        (record,) = Path(client.headers["x-cache"], "canary").iterdir()
    good = record.read_text()
    record.write_text(json.dumps(json.loads(good) | {"states": "0" * 64}))

    def is_refused(client: httpx.Client) -> bool:
        response = client.get("/health")
        assert response.status_code == 503
        return bool(response.json()["error"]["code"] != "model_loading")

    with serve("ngram", is_refused) as client:
        for response in (
            client.get("/health"),
            client.post(COMPLETIONS, json={"prompt": "the"}),
            client.post(COMPLETIONS, json={"prompt": "the", "stream": True}),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (503, "canary_mismatch")
            assert record.name in error["message"] and response.headers["x-should-retry"] == "false"
        assert client.get("/v1/models").status_code == 200
    record.write_text(good)
    with serve("ngram", is_ready) as client:
        assert client.post(COMPLETIONS, json={"prompt": "the"}).status_code == 200
