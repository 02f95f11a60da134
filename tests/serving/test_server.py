"""The server process: ready, signals, and start-up problems in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from flashlet.model.errors import ModelNotFoundError
from flashlet.serving.server import LoadedModel, ServerConfig, run_server

# Serves the toy of the API tests; "slow" is a way to load.
SCRIPT = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from flashlet.serving.server import ServerConfig, run_server

def load():
    if sys.argv[3] == "slow":
        time.sleep(60)
    tokenizer = toy.load_tokenizer(Path(sys.argv[2]))
    executor = toy.ScriptedExecutor(tokenizer)
    executor.delay = 0.02
    loop = toy.EngineLoop(toy.Engine(executor, tokenizer, toy.EngineConfig()))
    return toy.loaded_model(tokenizer, loop, executor)

config = ServerConfig(model_names=("toy",), port=int(sys.argv[4]), drain_timeout=float(sys.argv[5]))
sys.exit(run_server(config, load, lambda url: print(url, flush=True)))
"""
Start = Callable[..., "subprocess.Popen[str]"]
BODY = {"prompt": "the user", "ignore_eos": True, "stream": True}


@pytest.fixture
def start(tiny_model_path: Path) -> Iterator[Start]:
    """Starts server processes and kills what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def start(how: str = "normal", port: int = 0, drain_timeout: float = 30) -> subprocess.Popen[str]:
        toy = Path(__file__).parent / "api" / "conftest.py"
        arguments = [str(toy), str(tiny_model_path), how, str(port), str(drain_timeout)]
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Reader(threading.Thread):
    """A client that reads one stream until it ends or breaks off."""

    def __init__(self, url: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self._request = (url + "/v1/completions", BODY | {"max_tokens": max_tokens})
        self.start()

    def run(self) -> None:
        url, body = self._request
        with (
            suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", url, json=body, timeout=120) as response,
        ):
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)

    def wait_for_first(self) -> None:
        deadline = time.monotonic() + 60
        while not self.lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def wait_until_it_refuses(url: str) -> None:
    """Wait until a server has noticed that it shall stop."""
    deadline = time.monotonic() + 60
    with suppress(httpx.TransportError):  # it listens no longer
        while httpx.get(url + "/health").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_running_answer_is_finished_before_the_end(start: Start) -> None:
    process = start()
    url = url_of(process)
    assert httpx.get(url + "/health").status_code == 200
    reader = Reader(url, max_tokens=50)
    reader.wait_for_first()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reader.join(60)
    assert len(reader.lines) == 52 and reader.lines[-1] == "data: [DONE]"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/health")


def test_the_drain_has_a_limit(start: Start) -> None:
    process = start(drain_timeout=0.2)
    reader = Reader(url_of(process), max_tokens=500)
    reader.wait_for_first()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    reader.join(60)
    assert "shutting_down" in reader.lines[-2] and reader.lines[-1] == "data: [DONE]"


def test_half_sent_requests_do_not_hold_up_the_end(start: Start) -> None:
    process = start(drain_timeout=1000)
    port = int(url_of(process).rpartition(":")[2])
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port)) as body,
        socket.create_connection(("127.0.0.1", port)) as no_head,
    ):
        body.sendall(head + b"{")
        no_head.sendall(head[:20])
        httpx.get(f"http://127.0.0.1:{port}/health")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert process.stderr is not None and process.stderr.read() == ""


def test_a_reader_that_stops_does_not_hold_up_the_end(start: Start) -> None:
    process = start(drain_timeout=1000)
    port = int(url_of(process).rpartition(":")[2])
    content = json.dumps(BODY | {"max_tokens": 60, "n": 128, "logprobs": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", port))
        reader.sendall(head + content)
        assert reader.recv(10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(start: Start, number: signal.Signals) -> None:
    process = start()
    url = url_of(process)
    Reader(url, max_tokens=500).wait_for_first()
    process.send_signal(number)
    wait_until_it_refuses(url)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == 128 + number


def test_a_signal_while_loading(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = start("slow", port)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(url + "/health").status_code == 503
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_model_that_does_not_load(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> LoadedModel:
        raise ModelNotFoundError("no model 'x'; known: toy")

    assert run_server(ServerConfig(model_names=("toy",), port=0), load, print) == 1
    assert capfd.readouterr() == ("", "error: no model 'x'; known: toy\n")


def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_server(ServerConfig(model_names=("toy",), port=port), pytest.fail, print) == 69
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: cannot listen on 127.0.0.1:{port}: ") and errors.count("\n") == 1
    assert os.strerror(errno.EADDRINUSE).lower() in errors.lower()
