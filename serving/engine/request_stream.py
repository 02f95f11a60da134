"""The events of one request, as asyncio sees them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from flashlet.serving.engine.estimator import Estimate
from flashlet.serving.engine.request import TokenEvent
from flashlet.serving.engine.sequence import Sequence, SequenceTimes
from flashlet.serving.errors import RequestError

StreamItem = TokenEvent | RequestError | None  # None: cancelled


class RequestStream:
    """Token events of one request: `async for event in stream:`.

    Ends after the event with a finish reason, or after `cancel()`. Raises EngineFailedError or
    EngineStoppedError if the engine ends the request. Cancelling the task that awaits an event, or dropping
    the stream, cancels the request, too.
    """

    def __init__(
        self, sequence: Sequence, queue: asyncio.Queue[StreamItem], cancel: Callable[[Sequence], None]
    ) -> None:
        self._sequence = sequence
        self._queue = queue
        self._ended = False
        self._finalizer = weakref.finalize(self, cancel, sequence)
        self._finalizer.atexit = False

    @property
    def metrics(self) -> SequenceTimes:
        """When the request arrived, was scheduled, and got its first and its latest token."""
        return self._sequence.times

    @property
    def estimate(self) -> Estimate | None:
        """What was expected of the request when it arrived."""
        return self._sequence.estimate

    def cancel(self) -> None:
        """End the request; its blocks are free before the next step. Call it on the event loop's thread."""
        if not self._ended:
            self._ended = True
            self._finalizer()
            self._queue.put_nowait(None)

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if item is None or self._ended:
            raise StopAsyncIteration
        if isinstance(item, RequestError) or item.finish_reason is not None:
            self._ended = True
            self._finalizer.detach()
        if isinstance(item, RequestError):
            raise item
        return item
