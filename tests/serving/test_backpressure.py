"""Far more clients than the server takes at once: everyone is answered in the end, and nothing runs twice."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

# Answers are so long that clients wait for the engine, not for HTTP: only then is the queue ever full.
CLIENTS, RUNNING, WAITING, TOKENS = 300, 1, 64, 128
CONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class Server:
    """A server process with a short queue."""

    url: str
    process: subprocess.Popen[str]


@pytest.fixture
def server(tiny_model_path: Path) -> Iterator[Server]:
    """A server that is ready."""
    command = [
        *(sys.executable, "-m", "flashlet.serving.cli", "serve", str(tiny_model_path), "--port", "0"),
        *("--threads", "1", "--max-sequences", str(RUNNING), "--max-waiting", str(WAITING)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    try:
        assert match is not None
        yield Server(match[0], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


async def ask_all(server: Server, responses: list[httpx.Response]) -> list[str]:
    """Finish reasons of clients that come all at once; every response goes into `responses`, too.

    The server is stopped until all are connected, so that a fast one does not answer them as they come.
    """
    sent = asyncio.Semaphore(0)

    async def count(request: httpx.Request) -> None:
        sent.release()

    async def keep(response: httpx.Response) -> None:
        responses.append(response)

    hooks = {"request": [count], "response": [keep]}
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(limits=limits, timeout=120, event_hooks=hooks) as http:
        client = openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key="none", max_retries=30, http_client=http
        )

        async def ask(number: int) -> str:
            answer = await client.completions.create(
                model="tiny-llama",
                prompt=f"the user {number}",
                max_tokens=TOKENS,
                extra_body={"ignore_eos": True},
            )
            assert answer.usage is not None and answer.usage.completion_tokens == TOKENS
            return answer.choices[0].finish_reason

        server.process.send_signal(signal.SIGSTOP)
        try:
            answers = asyncio.gather(*map(ask, range(CLIENTS)))
            for _ in range(CLIENTS):
                await sent.acquire()
            await asyncio.sleep(CONNECT_SECONDS)
        finally:
            server.process.send_signal(signal.SIGCONT)
        return await answers


def test_everyone_is_answered_once(server: Server) -> None:
    responses: list[httpx.Response] = []
    assert asyncio.run(ask_all(server, responses)) == ["length"] * CLIENTS
    assert Counter(response.status_code for response in responses).keys() == {200, 429}
    waits = []
    for response in responses:
        if response.status_code == 429:
            assert response.headers["x-should-retry"] == "true"
            waits.append(int(response.headers["retry-after-ms"]))
            assert int(response.headers["retry-after"]) >= waits[-1] / 1000
    assert min(waits) >= 50 and max(waits) <= 60_000
    metrics = httpx.get(server.url + "/metrics").text
    ended = {
        reason: float(count)
        for reason, count in re.findall(
            r'^flashlet:request_success_total\{finished_reason="(\w+)"\} (\S+)', metrics, re.M
        )
    }
    assert ended == {"stop": 0, "length": CLIENTS, "abort": 0, "error": 0}
    generated = re.search(r"^flashlet:generation_tokens_total (\S+)", metrics, re.M)
    assert generated is not None and float(generated[1]) == CLIENTS * TOKENS
