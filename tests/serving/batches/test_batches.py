"""Files and batches of a running server, with the openai package as the client, across a crash."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

SERVE = [sys.executable, "-m", "flashlet.serving.cli", "serve"]
NUM_LINES = 500
ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT, LEGACY = "/v1/chat/completions", "/v1/completions"


def line(number: int, **body: Any) -> dict[str, Any]:
    """A line of an input: a greedy completion."""
    fields = {"model": "tiny-llama", "prompt": f"the user {number}", "max_tokens": 8, "temperature": 0}
    return {"custom_id": f"line-{number}", "method": "POST", "url": LEGACY, "body": fields | body}


def chat(number: int, **body: Any) -> dict[str, Any]:
    """A line of an input: a greedy conversation."""
    messages = [{"role": "user", "content": f"the weather {number}"}]
    fields = {"model": "tiny-llama", "messages": messages, "max_tokens": 8, "temperature": 0}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": fields | body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


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
        assert match is not None
        self.url = match[0]
        self.client = self.client_of("one")

    def client_of(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def end(self, number: signal.Signals) -> int:
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process.communicate()
        return code

    def submit(self, content: bytes, endpoint: str = LEGACY, window: str = "24h", **options: Any) -> Batch:
        file = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window=window,  # type: ignore[arg-type]
            **options,
        )

    def wait(self, batch: Batch, until: Callable[[Batch], bool] = lambda batch: batch.status in ENDED) -> Batch:
        deadline = time.monotonic() + 30
        while not until(batch := self.client.batches.retrieve(batch.id)):
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        return batch

    def output(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(text) for text in self.client.files.content(file_id).text.splitlines()]


@pytest.fixture(scope="module")
def server(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(tiny_model_path, tmp_path_factory.mktemp("data") / "new")
    yield server
    assert server.end(signal.SIGTERM) == 0


def test_each_line_is_answered_once_in_spite_of_a_crash(tiny_model_path: Path, tmp_path: Path) -> None:
    server = ServerProcess(tiny_model_path, tmp_path)
    lines = [line(number) for number in range(NUM_LINES)]
    lines[100]["body"]["temperature"] = 7
    batch = server.submit(jsonl(*lines), metadata={"job": "crash"})
    assert batch.status == "validating" and batch.metadata == {"job": "crash"}

    def in_the_middle(batch: Batch) -> bool:
        assert batch.request_counts is not None
        return batch.request_counts.completed > NUM_LINES // 4

    half = server.wait(batch, in_the_middle)
    server.end(signal.SIGKILL)
    assert half.status == "in_progress"
    server.start()
    done = server.wait(batch)
    assert done.status == "completed" and done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    answers = server.output(done.output_file_id)
    good = [item["custom_id"] for item in lines if item is not lines[100]]
    assert [answer["custom_id"] for answer in answers] == good
    assert all(answer["response"]["status_code"] == 200 and answer["error"] is None for answer in answers)
    (bad,) = server.output(done.error_file_id)
    assert bad["custom_id"] == "line-100" and bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["param"] == "temperature"
    live = server.client.completions.create(**lines[7]["body"])
    assert answers[7]["response"]["body"]["choices"][0]["text"] == live.choices[0].text
    assert server.end(signal.SIGTERM) == 0
