"""Events of one stream for several readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flashlet.serving.api import broadcast
from flashlet.serving.api.broadcast import Broadcast, SlowReaderError
from flashlet.serving.errors import EngineFailedError, EngineStoppedError


async def source(events: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for event in events:
        await asyncio.sleep(0)
        yield event
    if error is not None:
        raise error


async def read_all(stream: Broadcast, start: int = 0) -> list[bytes]:
    return [event async for event in stream.read(start)]


EVENTS = [b"data: %d\n\n" % number for number in range(20)]


def test_every_reader_gets_every_event() -> None:
    ends: list[int] = []

    async def run() -> None:
        stream = Broadcast(source(EVENTS), lambda: ends.append(1))
        first = stream.read()
        early = [await anext(first) for _ in range(5)]
        others = await asyncio.gather(*(read_all(stream) for _ in range(3)), read_all(stream, 4))
        assert early + [event async for event in first] == EVENTS
        assert others == [EVENTS] * 3 + [EVENTS[4:]]
        assert stream.whole() == EVENTS and await read_all(stream) == EVENTS

    asyncio.run(run())
    assert ends == [1]


def test_a_reader_that_stands_still_holds_up_nobody() -> None:
    async def run() -> None:
        stream = Broadcast(source(EVENTS), lambda: None)
        still = stream.read()
        assert await anext(still) == EVENTS[0]
        assert await read_all(stream) == EVENTS

    asyncio.run(run())


def test_a_failure_reaches_all_after_the_events_before_it() -> None:
    async def run() -> None:
        stream = Broadcast(source(EVENTS[:2], EngineFailedError("x")), lambda: None)
        for _ in range(2):
            reader = stream.read()
            assert [await anext(reader), await anext(reader)] == EVENTS[:2]
            with pytest.raises(EngineFailedError):
                await anext(reader)
        assert stream.whole() is None

    asyncio.run(run())


def test_a_cancelled_reader_that_fetched_ends_the_stream_for_all() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield EVENTS[0]
        await asyncio.Event().wait()

    async def run() -> None:
        stream = Broadcast(endless(), lambda: None)
        readers = [asyncio.create_task(read_all(stream)) for _ in range(2)]
        await asyncio.sleep(0.01)
        readers[0].cancel()
        with pytest.raises(EngineStoppedError):
            await readers[1]

    asyncio.run(run())


def test_old_events_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "MAX_BYTES", 10 * len(EVENTS[0]))

    async def run() -> None:
        stream = Broadcast(source(EVENTS), lambda: None)
        slow = stream.read()
        assert await anext(slow) == EVENTS[0]
        assert await read_all(stream) == EVENTS
        assert not stream.keeps(0) and stream.keeps(20) and not stream.keeps(21)
        assert await read_all(stream, 18) == EVENTS[18:]
        with pytest.raises(SlowReaderError):
            await anext(slow)
        assert stream.num_bytes <= broadcast.MAX_BYTES and stream.whole() is None

    asyncio.run(run())


@pytest.mark.parametrize("numbered", [False, True])
def test_the_latest_events_are_kept_however_large(monkeypatch: pytest.MonkeyPatch, numbered: bool) -> None:
    monkeypatch.setattr(broadcast, "MAX_BYTES", 5)

    async def run() -> None:
        stream = Broadcast(source([EVENTS[0] + EVENTS[1], EVENTS[2]]), lambda: None, numbered=numbered)
        events = await read_all(stream)
        assert b"".join(events).count(b"data: ") == 3
        assert not stream.keeps(0)

    asyncio.run(run())


def test_numbers() -> None:
    async def run() -> None:
        chunks = [b"data: a\n\ndata: b\n\n", b"", b"event: x\ndata: c\n\n"]
        stream = Broadcast(source(chunks), lambda: None, numbered=True)
        assert await read_all(stream) == [
            b"id: 1\ndata: a\n\n", b"id: 2\ndata: b\n\n", b"id: 3\nevent: x\ndata: c\n\n",
        ]  # fmt: skip
        assert await read_all(stream, 2) == [b"id: 3\nevent: x\ndata: c\n\n"]

    asyncio.run(run())
