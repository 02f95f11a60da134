"""A server under test: its process, how it starts, and what it uses."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from stream_client import Endpoint

_POLL = 0.01  # seconds between two looks at /health
_START_TIMEOUT = 600.0  # seconds


@dataclass
class Contender:
    """A server that runs already, or one of our own, which must be started first and stopped at the end."""

    name: str
    url: str = ""  # of a running server
    command: Sequence[str | Path] = ()  # of our own; the port is appended
    environment: Mapping[str, str] | None = None
    _process: psutil.Popen | None = field(default=None, init=False)
    _port: int = field(default=0, init=False)

    @property
    def endpoint(self) -> Endpoint:
        """Address and model name."""
        address = urlsplit(self.url or f"http://127.0.0.1:{self._port}")
        host, port = address.hostname or "127.0.0.1", address.port or 80
        return Endpoint(host, port, _first_model(host, port))

    @property
    def is_ours(self) -> bool:
        """Whether its process can be started and watched."""
        return bool(self.command)

    def start(self) -> float:
        """Start the process; seconds until /health first answered 200. RuntimeError if it never does."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        command = [str(part) for part in (*self.command, "--port", self._port)]
        begin = time.perf_counter()
        self._process = psutil.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not _healthy(self._port):
            if self._process.poll() is not None or time.perf_counter() - begin > _START_TIMEOUT:
                self.stop()
                raise RuntimeError(f"{self.name} did not start: {' '.join(command)}")
            time.sleep(_POLL)
        return time.perf_counter() - begin

    def stop(self) -> None:
        """End our process and wait for it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except psutil.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def cpu_seconds(self) -> float:
        """CPU time of the process and its children so far; 0 for a server that is not ours."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(item.user + item.system for item in times))

    def resident_bytes(self) -> int:
        """Memory of the process and its children, mapped files included."""
        return sum(process.memory_info().rss for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)] if self._process else []


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _first_model(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models")
        models = json.loads(connection.getresponse().read())
    return str(models["data"][0]["id"])
