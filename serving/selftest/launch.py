"""Start a server of our own to test, and look at it while it loads."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from flashlet.serving.errors import RequestError
from flashlet.serving.selftest.server import CHAT, HELLO, Loading, Server

HOST = "127.0.0.1"
START_SECONDS = 300.0  # weights may have to be quantized first
STOP_SECONDS = 30.0
# A short queue, so that overload can be tested.
LIMITS = ("--max-sequences", "8", "--max-waiting", "8")


@contextmanager
def started_server(path: Path, name: str) -> Iterator[Server]:
    """A process that serves the model at `path` as `name`, with a key of its own, on a free port.

    Raises:
        RequestError: the server ends or hangs at its start; its own message goes to stderr.
    """
    port, key = _free_port(), secrets.token_urlsafe(16)
    command = [sys.executable, "-m", "flashlet.serving.cli", "serve", str(path), "--host", HOST]
    command += ["--port", str(port), "--served-model-name", name, "--api-key", key, *LIMITS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://{HOST}:{port}"
    try:
        server = Server(url, key, loading=_wait(process, url, key))
        yield server
        server.close()
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, key: str) -> Loading | None:
    """Wait until /health succeeds; returns what was answered before, if the model took that long."""
    loading: Loading | None = None
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=5) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RequestError(f"the server ended with exit code {process.returncode}")
            try:
                loading = loading or _look(client)
                if client.get("/health").is_success:
                    return loading
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.01)
    raise RequestError(f"the server did not start within {START_SECONDS:.0f} seconds")


def _look(client: httpx.Client) -> Loading | None:
    """The answers of a server that still loads, or None if it was done before the last of them."""
    health = client.get("/health")
    models = client.get("/v1/models")
    chat = client.post(CHAT, json={"messages": HELLO, "max_tokens": 1})
    return None if health.is_success or chat.is_success else Loading(health, chat, models)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])
