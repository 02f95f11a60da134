"""The engine's thread, and the only bridge between it and asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import abc
from collections.abc import Callable
from functools import partial

from flashlet.serving.engine.engine import Engine, SequenceEvent
from flashlet.serving.engine.estimator import Estimate
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.request_stream import RequestStream, StreamItem
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.stats import EngineStats
from flashlet.serving.errors import EngineDeadError, EngineStoppedError, RequestError

logger = logging.getLogger(__name__)

StreamQueue = asyncio.Queue[StreamItem]
Batch = list[tuple[StreamQueue, StreamItem]]


class EngineLoop:
    """Runs an engine in a thread of its own.

    The event loop's side only leaves messages (new sequences, cancellations) that the thread picks up
    before each step, so it never waits for a running step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Re-entrant, because garbage collection may cancel a dropped stream anywhere.
        self._wakeup = threading.Condition(threading.RLock())
        # guarded by _wakeup
        self._accepting = False
        self._running = False
        self._stopping = False
        self._submitted: dict[Sequence, tuple[asyncio.AbstractEventLoop, StreamQueue]] = {}
        self._cancelled: list[Sequence] = []
        self._when_idle: list[Callable[[], object]] = []
        # owned by the thread
        self._streams: dict[Sequence, tuple[asyncio.AbstractEventLoop, StreamQueue]] = {}

    def start(self) -> None:
        """Start the thread and accept requests. Call it once."""
        self._accepting = self._running = True
        self._thread.start()

    async def submit(self, request: GenerationRequest) -> RequestStream:
        """Queue `request` and return its events. Raises RequestError at once if it cannot be served."""
        queue: StreamQueue = asyncio.Queue()
        with self._wakeup:
            if not self._accepting:
                raise EngineStoppedError("the server is shutting down and takes no new requests")
            sequence = self.engine.create(request, [*self._submitted])
            self._submitted[sequence] = (asyncio.get_running_loop(), queue)
            self._wakeup.notify()
        return RequestStream(sequence, queue, self._cancel)

    def estimate(self, requests: abc.Sequence[GenerationRequest]) -> list[Estimate]:
        """What to expect of `requests` if they were submitted now. Raises RequestError as `submit`."""
        with self._wakeup:
            pending = [*self._submitted]
        return self.engine.estimate(requests, pending)

    async def drain(self, timeout: float) -> bool:
        """Stop accepting and wait at most `timeout` seconds; whether everything has ended by then."""
        idle = asyncio.Event()
        with self._wakeup:
            self._accepting = False
            if not self._running:
                return True
            self._when_idle.append(partial(asyncio.get_running_loop().call_soon_threadsafe, idle.set))
            self._wakeup.notify()
        try:
            await asyncio.wait_for(idle.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    def stop(self, timeout: float = 30.0) -> bool:
        """End the thread after its current step; requests still there end with EngineStoppedError.

        False if the step did not return within `timeout` seconds. Calling it twice is harmless.
        """
        with self._wakeup:
            self._accepting = False
            self._stopping = True
            self._wakeup.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def stats(self) -> EngineStats:
        """A snapshot, at any time and from any thread."""
        return self.engine.stats()

    def _cancel(self, sequence: Sequence) -> None:
        with self._wakeup:
            self._cancelled.append(sequence)
            self._wakeup.notify()

    def _run(self) -> None:
        ending: RequestError = EngineStoppedError("the server stopped before the request was done")
        try:
            while self._pick_up():
                self._deliver(self.engine.step())
        except Exception:
            logger.exception("the engine thread failed")
            self.engine.healthy = False
            ending = EngineDeadError("the engine failed while it ran this request")
        finally:
            self._end_all(ending)

    def _pick_up(self) -> bool:
        """Take the messages, sleeping while there is nothing to do; False when it is time to end."""
        with self._wakeup:
            while not (
                self._stopping
                or self._submitted
                or self._cancelled
                or self.engine.has_work
                or self.engine.is_calibrating
            ):
                self.engine.check_integrity()
                self._tell_idle()
                self._wakeup.wait()
            if self._stopping:
                return False
            for sequence in self._submitted:
                self.engine.add(sequence)
            self._streams.update(self._submitted)
            self._submitted.clear()
            cancelled, self._cancelled = self._cancelled, []
        for sequence in cancelled:
            self._drop(sequence)
        return True

    def _drop(self, sequence: Sequence) -> None:
        """Nobody listens to `sequence` any more."""
        self.engine.cancel(sequence)
        self._streams.pop(sequence, None)

    def _deliver(self, events: list[SequenceEvent]) -> None:
        """Hand over the events of a step, in one call per event loop; there is hardly ever a second loop."""
        batches: dict[asyncio.AbstractEventLoop, tuple[Batch, list[Sequence]]] = {}
        for sequence, event in events:
            loop, queue = self._streams[sequence]
            batch, sequences = batches.setdefault(loop, ([], []))
            batch.append((queue, event))
            sequences.append(sequence)
            if not isinstance(event, TokenEvent) or event.finish_reason is not None:
                del self._streams[sequence]
        for loop, (batch, sequences) in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the loop is closed, and its tasks with it
                for sequence in sequences:
                    self._drop(sequence)

    def _tell_idle(self) -> None:
        for tell in self._when_idle:
            try:
                tell()
            except RuntimeError:
                logger.debug("an event loop closed while it drained")
        self._when_idle.clear()

    def _end_all(self, ending: RequestError) -> None:
        """End every sequence, those just submitted included, and refuse new ones."""
        with self._wakeup:
            self._accepting = self._running = False
            known = [*self._streams]
            self._streams.update(self._submitted)
            self._submitted.clear()
            self._deliver([(sequence, ending) for sequence in [*self._streams]])
            self._tell_idle()
        for sequence in known:
            self.engine.cancel(sequence)


def _put_all(batch: Batch) -> None:
    """Runs on the event loop: append each event to its stream."""
    for queue, item in batch:
        queue.put_nowait(item)
