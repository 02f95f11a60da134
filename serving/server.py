"""The server process: listen, load the model, serve, drain."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from flashlet.model.errors import FlashletError
from flashlet.serving.api.app import build_app
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.protocol import LimitedProtocol
from flashlet.serving.api.service import LoadedModel, Service

__all__ = ["ListenError", "LoadedModel", "ServerConfig", "run_server"]

EXIT_FAILURE = 1  # the model does not load
EXIT_UNAVAILABLE = 69  # the address cannot be had (EX_UNAVAILABLE of sysexits.h)
KEEP_ALIVE = (
    75  # seconds; more than clients keep idle connections, so that they never write into a closing one
)
GRACE = 2.0  # seconds for the last bytes to leave, after the engine has stopped

logger = logging.getLogger(__name__)

Loader = Callable[[], LoadedModel]


class ListenError(FlashletError):
    """The address cannot be listened on; the message says why."""


def run_server(config: ServerConfig, load: Loader, on_ready: Callable[[str], None]) -> int:
    """Serve until a signal; returns the exit code.

    Listens at once: while `load` runs in a thread, /health answers 503 and /v1/models works. The engine loop
    that it returns is started here and stopped at the end; `on_ready` gets the URL when requests are served.
    SIGTERM or SIGINT drains and returns 0; a second one exits at once.
    """
    try:
        listener = _listen(config.host, config.port)
    except ListenError as exc:
        return _complain(exc, EXIT_UNAVAILABLE)
    try:
        code: int = uvloop.run(_Server(config, listener).run(load, on_ready))
    except FlashletError as exc:
        return _complain(exc, EXIT_FAILURE)
    return code


def _complain(exc: FlashletError, code: int) -> int:
    print(f"flashlet: {exc}", file=sys.stderr, flush=True)
    return code


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ListenError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=1024)
    except OSError as exc:
        hint = "; choose another with --port" if exc.errno == errno.EADDRINUSE else ""
        raise ListenError(f"cannot listen on {_address(host, port)}: {exc.strerror or exc}{hint}") from None
    listener.setblocking(False)
    return listener


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers: `_Server` decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class _Server:
    """One run of the server, on its event loop."""

    def __init__(self, config: ServerConfig, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        self._service = Service(config)
        self._stop = asyncio.Event()
        self._http = _HTTPServer(
            uvicorn.Config(
                build_app(self._service),
                http=LimitedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=config.log_level,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=math.ceil(config.drain_timeout + GRACE),
            )
        )

    async def run(self, load: Loader, on_ready: Callable[[str], None]) -> int:
        """Serve until a signal. Raises what `load` raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        serving = loop.create_task(self._http.serve([self._listener]))
        try:
            loading = _in_thread(load)
            stop = loop.create_task(self._stop.wait())
            waits: set[asyncio.Future[Any]] = {loading, stop}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                model = loading.result()
                model.engine_loop.start()
                self._service.model = model
                gc.collect()
                gc.freeze()  # what is here stays: later collections need not look at it
                on_ready(f"http://{_address(self._config.host, self._listener.getsockname()[1])}")
            await stop
        finally:
            await self._shut_down()
            await serving
        return 0

    def _on_signal(self, number: int) -> None:
        """Stop; at a second signal exit at once, as if it had not been handled."""
        if self._stop.is_set():
            os._exit(128 + number)
        self._service.stopping = True
        self._stop.set()

    async def _shut_down(self) -> None:
        """Stop accepting, let running requests end within the limit, end the others with an error."""
        self._service.stopping = True
        self._http.should_exit = True
        if self._service.model is not None:
            engine_loop = self._service.model.engine_loop
            if not await engine_loop.drain(self._config.drain_timeout):
                logger.warning("requests still ran after %g s; ending them", self._config.drain_timeout)
            await asyncio.to_thread(engine_loop.stop)


def _in_thread(load: Loader) -> asyncio.Future[LoadedModel]:
    """Run `load` in a daemon thread, which an exit while it loads does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LoadedModel] = loop.create_future()

    def settle(set_value: Callable[[Any], None], value: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if future.done() else set_value(value))

    def run() -> None:
        try:
            model = load()
        except BaseException as exc:
            settle(future.set_exception, exc)
        else:
            settle(future.set_result, model)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future
