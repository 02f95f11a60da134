"""The event loop's side of the server process: uvicorn, signals and draining."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from flashlet.serving.api.app import build_app, build_line_app
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.loaded_model import LoadedModel
from flashlet.serving.api.protocol import LimitedProtocol
from flashlet.serving.api.service import Service
from flashlet.serving.batches.batch_runner import BatchRunner

KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections: none writes into a closing one
GRACE = 2.0  # seconds for the last bytes to leave, after the engine has stopped

logger = logging.getLogger(__name__)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: `HTTPServer` decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class HTTPServer:
    """One run of the server, on its event loop."""

    def __init__(self, config: ServerConfig, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        self._service = Service(config)
        self._batch_runner: BatchRunner | None = None  # once the model is there
        self._stop = asyncio.Event()
        self._http = _Uvicorn(
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
            )
        )

    async def run(self, loading: Future[LoadedModel], on_ready: Callable[[], None]) -> None:
        """Serve until a signal. Raises what loading the model raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        serving = loop.create_task(self._http.serve([self._listener]))
        try:
            loaded = asyncio.wrap_future(loading)
            stop = loop.create_task(self._stop.wait())
            waits: set[asyncio.Future[Any]] = {loaded, stop}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if loaded.done():
                model = loaded.result()
                self._start(model)
                if model.problem is None:
                    on_ready()
                else:
                    logger.error("no requests are served: %s", model.problem)
            await stop
        finally:
            await self._shut_down(serving)

    def _start(self, model: LoadedModel) -> None:
        model.engine_loop.start()
        self._service.model = model
        if self._service.batches is not None:
            make_app = partial(build_line_app, self._service)
            self._batch_runner = BatchRunner(self._service.batches, self._service, make_app)
            self._batch_runner.start()
        gc.freeze()  # what is here stays: collections need not look at it
        gc.enable()

    def _on_signal(self, number: int) -> None:
        """Stop; at a second signal exit at once, as if it had not been handled."""
        if self._stop.is_set():
            os._exit(128 + number)
        self._service.stopping = True
        self._stop.set()

    async def _shut_down(self, serving: asyncio.Task[None]) -> None:
        """Stop accepting, let running requests end within the limit, end the others with an error.

        Clients that then still do not read their answer, or never sent the whole request, are cut off.
        """
        self._service.stopping = True
        self._http.should_exit = True
        self._service.answering.close()
        if self._batch_runner is not None:
            await self._batch_runner.stop()
        if self._service.model is not None:
            engine_loop = self._service.model.engine_loop
            if not await engine_loop.drain(self._config.drain_timeout):
                logger.warning("requests still ran after %g s; ending them", self._config.drain_timeout)
            await asyncio.to_thread(engine_loop.stop)
            self._service.model = None
        await asyncio.wait({serving}, timeout=GRACE)
        for connection in [*self._http.server_state.connections]:
            connection.transport.abort()
        await serving
        await self._service.responses.close()
        if self._service.batches is not None:
            await self._service.batches.close()
        gc.unfreeze()
