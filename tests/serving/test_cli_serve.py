"""`flashlet serve` as users start it: ready line, answers, streams, signals and start-up problems."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

SERVE = [sys.executable, "-m", "flashlet.serving.cli", "serve"]
MESSAGES = [{"role": "user", "content": "the weather in the city"}]


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port with the key "secret", and its ready line."""
    process = subprocess.Popen(
        [*SERVE, str(tiny_model_path), "--port", "0", "--api-key", "secret", "--threads", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process, process.stdout.readline()
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def url(server: tuple[subprocess.Popen[str], str]) -> str:
    match = re.search(r"http://127\.0\.0\.1:\d+", server[1])
    assert match is not None, server[1]
    return match[0]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_the_curl_command_of_the_ready_line_works(server: tuple[subprocess.Popen[str], str]) -> None:
    assert server[1].startswith("tiny-llama is ready on http://127.0.0.1:")
    command = server[1].split(" - try: ")[1].replace("KEY", "secret").replace("}]}", '}], "max_tokens": 3}')
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert '"object":"chat.completion"' in result.stdout


def test_plain_and_streamed_answers_are_equal(client: OpenAI) -> None:
    options = {"model": "tiny-llama", "messages": MESSAGES, "max_tokens": 20, "seed": 3}
    plain = client.chat.completions.create(**options)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == plain.choices[0].message.content
    assert plain.usage.completion_tokens == 20
    assert plain.choices[0].finish_reason == "length"


def test_key_is_asked_for(url: str) -> None:
    assert httpx.post(f"{url}/v1/chat/completions", json={"messages": MESSAGES}).status_code == 401


def test_chat_command_talks_to_it(url: str) -> None:
    command = [sys.executable, "-m", "flashlet.serving.cli", "chat", "--url", url, "--max-tokens", "5"]
    good = subprocess.run(
        [*command, "--api-key", "secret"], input="hello\n", capture_output=True, text=True, check=True
    )
    assert good.stdout.strip()
    assert not good.stderr
    bad = subprocess.run(
        [*command, "--api-key", "wrong"], input="hello\n", capture_output=True, text=True, check=True
    )
    assert bad.stderr.startswith("error: the server answered 401: ")


def test_port_in_use_is_one_line(url: str, tiny_model_path: Path) -> None:
    result = subprocess.run(
        [*SERVE, str(tiny_model_path), "--port", url.rsplit(":", 1)[1]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 69
    assert re.fullmatch(r"error: cannot listen on 127\.0\.0\.1:\d+: .*--port\n", result.stderr)


def test_damaged_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    result = subprocess.run(
        [*SERVE, str(tmp_path), "--port", "0"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_sigterm_ends_with_0(server: tuple[subprocess.Popen[str], str], client: OpenAI) -> None:
    process = server[0]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny-llama",
        messages=MESSAGES,
        max_tokens=100,
        seed=3,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    process.send_signal(signal.SIGTERM)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    assert process.wait(timeout=60) == 0
