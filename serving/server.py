"""The server process: listen, load the model, serve, drain."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

from flashlet.model.errors import FlashletError
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.loaded_model import LoadedModel

__all__ = ["ListenError", "LoadedModel", "ServerConfig", "run_server"]

EXIT_FAILURE = 1  # the model does not load
EXIT_UNAVAILABLE = 69  # the address cannot be had (EX_UNAVAILABLE of sysexits.h)

# After a step the engine's thread waits at most so long for the event loop's to let go of the interpreter.
SWITCH_SECONDS = 0.001

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
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.disable()  # until the server is ready: nothing that imports make is garbage
    loading = _start_loading(load)
    # Imported while the model loads: the HTTP libraries take a third of a second.
    import uvloop

    from flashlet.serving.api.http_server import HTTPServer

    def announce() -> None:
        on_ready(f"http://{_address(config.host, listener.getsockname()[1])}")

    try:
        uvloop.run(HTTPServer(config, listener).run(loading, announce))
    except FlashletError as exc:
        return _complain(exc, EXIT_FAILURE)
    finally:
        gc.enable()
    return 0


def _start_loading(load: Loader) -> Future[LoadedModel]:
    """Run `load` in a daemon thread, so that an exit does not wait for it."""
    loading: Future[LoadedModel] = Future()

    def run() -> None:
        try:
            loading.set_result(load())
        except BaseException as exc:
            loading.set_exception(exc)

    threading.Thread(target=run, name="load", daemon=True).start()
    return loading


def _complain(exc: FlashletError, code: int) -> int:
    print(f"error: {exc}", file=sys.stderr, flush=True)
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
        raise ListenError(f"cannot listen on {_address(host, port)}: {_reason(exc)}{hint}") from None
    listener.setblocking(False)
    return listener


def _reason(error: OSError) -> str:
    """The system's words alone: create_server() adds the address to them."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror or error)
    return os.strerror(error.errno)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
