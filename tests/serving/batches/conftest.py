"""`flashlet serve` on the tiny model as a process, and lines for its batches."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

SERVE = [sys.executable, "-m", "flashlet.serving.cli", "serve"]
ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT, LEGACY = "/v1/chat/completions", "/v1/completions"


def _legacy(number: int, **body: Any) -> dict[str, Any]:
    """A line of an input: a greedy completion."""
    fields = {"model": "tiny-llama", "prompt": f"the user {number}", "max_tokens": 8, "temperature": 0}
    return {"custom_id": f"line-{number}", "method": "POST", "url": LEGACY, "body": fields | body}


def _chat(number: int, **body: Any) -> dict[str, Any]:
    """A line of an input: a greedy conversation."""
    messages = [{"role": "user", "content": f"the weather {number}"}]
    fields = {"model": "tiny-llama", "messages": messages, "max_tokens": 8, "temperature": 0}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": fields | body}


def _jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


def _has_ended(batch: Batch) -> bool:
    return batch.status in ENDED


class ServerProcess:
    """`flashlet serve` with a data folder that outlives it."""

    def __init__(self, model: Path, data: Path, *options: str) -> None:
        self._command = [
            *SERVE, str(model), "--port", "0", "--data", str(data), "--threads", "1",
            "--api-key", "one", "--api-key", "two", *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+", self.process.stdout.readline())
        if match is None:
            self.process.communicate()
            pytest.fail(f"the server ended with {self.process.returncode}")
        self.url = match[0]
        self.client = self.client_of("one")

    def client_of(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def metric(self, name: str) -> float:
        """A metric of the server, by its name without the prefix, labels included."""
        text = httpx.get(self.url + "/metrics", headers={"x-api-key": "one"}).text
        return float(text.partition(f"\nflashlet:{name} ")[2].split("\n")[0])

    def end(self, number: signal.Signals) -> int:
        """End the process; returns its exit code."""
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def submit(self, content: bytes, endpoint: str = LEGACY, window: str = "24h", **options: Any) -> Batch:
        """Upload `content` and make a batch of it."""
        file = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window=window,  # type: ignore[arg-type]
            **options,
        )

    def wait(
        self, batch: Batch, until: Callable[[Batch], bool] = lambda batch: batch.status in ENDED
    ) -> Batch:
        """The batch as it is once `until` holds; by default, once it has ended."""
        deadline = time.monotonic() + 60
        while not until(batch := self.client.batches.retrieve(batch.id)):
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        return batch

    def output(self, file_id: str | None) -> list[dict[str, Any]]:
        """The decoded lines of an output file; none if there is none."""
        if file_id is None:
            return []
        return [json.loads(text) for text in self.client.files.content(file_id).text.splitlines()]


@pytest.fixture(scope="session")
def lines() -> SimpleNamespace:
    """Makers of input lines, and of the file that they stand in."""
    return SimpleNamespace(legacy=_legacy, chat=_chat, jsonl=_jsonl)


@pytest.fixture
def start(tiny_model_path: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers on one data folder, and kills what is left of them."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        started.append(ServerProcess(tiny_model_path, tmp_path / "data", *options))
        return started[-1]

    yield start
    for server in started:
        server.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def server(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two keys; its clients have the key "one"."""
    server = ServerProcess(tiny_model_path, tmp_path_factory.mktemp("data") / "new")
    yield server
    assert server.end(signal.SIGTERM) == 0
