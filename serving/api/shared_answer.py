"""One run of an endpoint, whose response goes to every client that asks for it while it lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import Response

from flashlet.serving.api.body import Handler, JSONRequest
from flashlet.serving.api.broadcast import Broadcast
from flashlet.serving.api.sse import EventStream, cancel_on_disconnect
from flashlet.serving.errors import EngineStoppedError

Leave = Callable[[], None]


class SharedAnswer:
    """Runs for as long as one client listens, and `linger` seconds more in case that one comes back."""

    def __init__(self, linger: float, resume_linger: float, on_end: Callable[[SharedAnswer], None]) -> None:
        """`resume_linger`: for streams that can be resumed. `on_end` is called once, after the last token."""
        self.linger = linger
        self.num_joined = 0
        self.complete = False  # it has come to a good end
        self.abandoned = False
        self._resume_linger = resume_linger
        self._on_end = on_end
        self._ended = False
        self._num_clients = 0
        self._timer: asyncio.TimerHandle | None = None  # running while no client is there
        self._gone = asyncio.Event()  # set when it is abandoned
        self._response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._broadcast: Broadcast | None = None  # None: plain, or not known yet

    @property
    def resume_id(self) -> str | None:
        """Under which a client may resume the stream."""
        response = self._finished_response()
        return response.resume_id if isinstance(response, EventStream) else None

    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""
        response = self._finished_response()
        if self._broadcast is not None:
            return self._broadcast.num_bytes
        return 0 if response is None else len(response.body)

    @property
    def from_start(self) -> bool:
        """Whether a client that comes now gets all of it."""
        return not self.abandoned and (self._broadcast is None or self._broadcast.keeps(0))

    def record(self) -> tuple[Response, list[bytes]] | None:
        """The response, and its events if it is streamed; None unless it is complete."""
        response = self._finished_response()
        if response is None or not self.complete:
            return None
        if self._broadcast is None:
            return response, []
        events = self._broadcast.whole()
        return None if events is None else (response, events)

    async def run(self, request: JSONRequest, handler: Handler) -> Response:
        """Answer the first client; the others join. Raises what `handler` raises, to all of them."""
        leave = self._enter()
        try:
            async with cancel_on_disconnect(request.receive, leave):
                response = await handler(request.heard_by(self._receive))
        except BaseException as exc:
            failure = exc if isinstance(exc, Exception) else EngineStoppedError("the answer was cancelled")
            self._response.set_exception(failure)
            self._response.exception()  # seen, even if nobody joined
            self._end(complete=False)
            raise
        if isinstance(response, EventStream):
            is_resumable = response.resume_id is not None
            if is_resumable:
                self.linger = max(self.linger, self._resume_linger)
            self._broadcast = Broadcast(response.events, self._stream_ended, numbered=is_resumable)
            self._response.set_result(response)
            if self.abandoned:
                response.cancel()
            return response.reading(self._broadcast.read(), leave)
        self._response.set_result(response)
        self._end(complete=response.status_code == 200)
        return response

    async def join(self, request: JSONRequest) -> Response:
        """Answer a further client, from the start."""
        self.num_joined += 1
        leave = self._enter()
        try:
            async with cancel_on_disconnect(request.receive, leave):
                response = await asyncio.shield(self._response)
        except BaseException:
            leave()
            raise
        if self._broadcast is None:
            leave()
            return response
        assert isinstance(response, EventStream)
        return response.reading(self._broadcast.read(), leave)

    def resume(self, start: int) -> Response | None:
        """The stream without its first `start` events; None if they were never sent or are no longer kept."""
        response = self._finished_response()
        if self.abandoned or self._broadcast is None or not self._broadcast.keeps(start):
            return None
        assert isinstance(response, EventStream)
        return response.reading(self._broadcast.read(start), self._enter())

    def abandon_unheard(self) -> None:
        """Do not wait for clients to come back."""
        self.linger = 0.0
        if not self._num_clients and not self._ended:
            self._abandon()

    def _finished_response(self) -> Response | None:
        """The response once there is one; a streamed one then still goes on."""
        if not self._response.done() or self._response.exception() is not None:
            return None
        return self._response.result()

    def _enter(self) -> Leave:
        """Count a client; the function that is returned, called once or more, ends that."""
        self._num_clients += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        here = True

        def leave() -> None:
            nonlocal here
            if here:
                here = False
                self._num_clients -= 1
                if not self._num_clients and not self._ended:
                    self._wait_for_clients()

        return leave

    def _wait_for_clients(self) -> None:
        if self.linger:
            self._timer = asyncio.get_running_loop().call_later(self.linger, self._abandon)
        else:
            self._abandon()

    def _abandon(self) -> None:
        """Stop it: the endpoint is told that its client has gone."""
        self.abandoned = True
        self._gone.set()
        response = self._finished_response()
        if isinstance(response, EventStream):
            response.cancel()

    async def _receive(self) -> dict[str, Any]:
        """What the endpoint hears of its clients after the body."""
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def _stream_ended(self) -> None:
        assert self._broadcast is not None
        self._end(complete=self._broadcast.failure is None)

    def _end(self, *, complete: bool) -> None:
        self._ended = True
        self.complete = complete and not self.abandoned
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(self)
