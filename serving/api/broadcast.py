"""The events of one stream, for clients that read it from its start, or from where they were cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from flashlet.serving.errors import EngineStoppedError, RequestError

MAX_BYTES = 8 << 20  # of the latest events, which readers may still ask for


class SlowReaderError(RequestError):
    """The reader fell so far behind that the event it wants is no longer kept."""


class Broadcast:
    """Keeps the latest encoded events of `source`. Any number of readers share it, each at its own pace.

    There is no task in between: whichever reader first wants an event that is not there yet fetches it from
    the source for all, so one reader alone costs no more than reading the source itself.
    """

    def __init__(
        self, source: AsyncIterator[bytes], on_end: Callable[[], None], *, numbered: bool = False
    ) -> None:
        """`on_end` is called once, when the source is exhausted or fails. `numbered`: add `id:` lines."""
        self.ended = False
        self.failure: Exception | None = None  # what the source raised
        self.num_bytes = 0
        self._source = source
        self._on_end = on_end
        self._numbered = numbered
        self._events: list[bytes] = []
        self._num_dropped = 0
        self._fetching = False
        self._waiting: list[asyncio.Future[None]] = []  # readers, for what another one fetches

    @property
    def num_events(self) -> int:
        """Events so far; the id of the latest one."""
        return self._num_dropped + len(self._events)

    def keeps(self, start: int) -> bool:
        """Whether a reader may begin after `start` events."""
        return self._num_dropped <= start <= self.num_events

    def whole(self) -> list[bytes] | None:
        """All events, if the stream has come to its end, without an error, and none was dropped."""
        is_whole = self.ended and self.failure is None and not self._num_dropped
        return self._events if is_whole else None

    async def read(self, start: int = 0) -> AsyncIterator[bytes]:
        """Events after the first `start` ones, to the end.

        Raises:
            SlowReaderError: the next event is no longer kept.
            Exception: whatever the source raised.
        """
        while True:
            if start < self._num_dropped:
                raise SlowReaderError(f"event {start + 1} was not read in time and is gone")
            if start < self.num_events:
                yield self._events[start - self._num_dropped]
                start += 1
            elif self.failure is not None:
                raise self.failure
            elif self.ended:
                return
            elif self._fetching:
                await self._wait()
            else:
                await self._fetch()

    async def _wait(self) -> None:
        """Return when the reader that fetches has an event."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    async def _fetch(self) -> None:
        """Take what the source has next."""
        self._fetching = True
        try:
            self._append(await anext(self._source))
        except StopAsyncIteration:
            self.ended = True
        except Exception as exc:
            self.ended, self.failure = True, exc
        except BaseException:  # the reader's task is cancelled, which ends the source
            self.ended, self.failure = True, EngineStoppedError("the answer was cancelled")
            raise
        finally:
            self._fetching = False
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiting.clear()
            if self.ended:
                self._on_end()

    def _append(self, chunk: bytes) -> None:
        """Keep a chunk of whole events; over the limit, drop the older half of all, but none of these."""
        if self._numbered:
            parts = chunk.split(b"\n\n")[:-1]
            new = [b"id: %d\n%b\n\n" % item for item in enumerate(parts, self.num_events + 1)]
        else:
            new = [chunk] if chunk else []
        self._events += new
        self.num_bytes += sum(map(len, new))
        if self.num_bytes > MAX_BYTES:
            dropped = min(max(1, len(self._events) // 2), len(self._events) - len(new))
            self._num_dropped += dropped
            self.num_bytes -= sum(map(len, self._events[:dropped]))
            del self._events[:dropped]
