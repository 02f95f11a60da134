"""The thread and its bridge: delivery, cancellation by every road, draining, stopping, failures."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from flashlet.model.sampling import SamplingParams
from flashlet.model.step import Step
from flashlet.serving.engine.engine_loop import EngineLoop
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.request_stream import RequestStream
from flashlet.serving.errors import (
    ContextLengthError,
    EngineFailedError,
    EngineStoppedError,
    QueueFullError,
)


def request(seed: int = 0, max_tokens: int | None = 8) -> GenerationRequest:
    return GenerationRequest(
        tuple(b"hello"), SamplingParams(seed=seed), max_tokens=max_tokens, ignore_eos=True
    )


class Gate:
    """Lets the executor run a given number of steps, then holds it inside a step."""

    def __init__(self, executor: object, steps: int) -> None:
        self._permits = threading.Semaphore(steps)
        self.reached = threading.Event()
        executor.before_step = self._pass  # type: ignore[attr-defined]

    def _pass(self, step: Step) -> None:
        if not self._permits.acquire(blocking=False):
            self.reached.set()
            assert self._permits.acquire(timeout=30)

    def open(self, steps: int = 10_000) -> None:
        self.reached.clear()
        self._permits.release(steps)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 30)


@contextlib.asynccontextmanager
async def running(
    toy: SimpleNamespace, executor: object = None, **options: object
) -> AsyncIterator[EngineLoop]:
    loop = EngineLoop(toy.engine(executor, **options))
    loop.start()
    try:
        yield loop
    finally:
        assert loop.stop()
        assert not loop._streams, "the thread remembers a stream that has ended"
        assert loop.stats().kv_usage == 0.0


async def collect(stream: RequestStream) -> list[TokenEvent]:
    return [event async for event in stream]


async def until_idle(loop: EngineLoop) -> None:
    assert await loop.drain(30)
    assert loop.stats().kv_usage == 0.0
    assert (loop.stats().running, loop.stats().waiting) == (0, 0)


def test_many_tasks_get_their_own_answers(toy: SimpleNamespace) -> None:
    async def main() -> None:
        async with running(toy, toy.Executor(num_blocks=24), max_sequences=4) as loop:

            async def ask(seed: int) -> list[int | None]:
                await asyncio.sleep(seed % 5 * 0.001)
                events = await collect(await loop.submit(request(seed, 20)))
                return [event.token_id for event in events]

            answers = await asyncio.gather(*map(ask, range(30)))
            await until_idle(loop)
        for seed, answer in enumerate(answers):
            assert answer == toy.run_alone(request(seed, 20), 128).tokens

    asyncio.run(main())


def test_a_slow_reader_loses_nothing(toy: SimpleNamespace) -> None:
    async def main() -> None:
        async with running(toy) as loop:
            stream = await loop.submit(request(max_tokens=30))
            await until_idle(loop)
            events = await collect(stream)
        assert [event.num_output_tokens for event in events] == [*range(1, 31)]
        assert stream.metrics.arrival < stream.metrics.first_token < stream.metrics.last_token
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


def test_refusals_do_not_wait_for_a_running_step(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 0)
        async with running(toy, executor, max_sequences=1, max_waiting=1) as loop:
            streams = [await loop.submit(request())]
            await gate.wait()  # the thread is inside a step from here on
            streams.append(await loop.submit(request()))
            with pytest.raises(QueueFullError):
                await loop.submit(request())
            with pytest.raises(ContextLengthError):
                await loop.submit(request(max_tokens=1000))
            gate.open()
            assert [len(await collect(stream)) for stream in streams] == [8, 8]

    asyncio.run(main())


async def cancel_directly(stream: RequestStream) -> None:
    stream.cancel()
    stream.cancel()
    assert await collect(stream) == []


async def cancel_the_task(stream: RequestStream) -> None:
    task = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [cancel_directly, cancel_the_task])
def test_leaving_frees_the_blocks_within_one_step(toy: SimpleNamespace, leave: object) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 3)
        async with running(toy, executor) as loop:
            stream = await loop.submit(request(max_tokens=100))
            await gate.wait()  # inside the fourth step
            assert loop.stats().running == 1
            await leave(stream)  # type: ignore[operator]
            gate.open()
            await until_idle(loop)
            assert len(executor.steps) == 4

    asyncio.run(main())


def test_a_dropped_stream_is_cancelled(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 3)
        async with running(toy, executor) as loop:
            stream = await loop.submit(request(max_tokens=100))
            await gate.wait()
            del stream
            gc.collect()
            gate.open()
            await until_idle(loop)
            assert len(executor.steps) == 4

    asyncio.run(main())


def test_cancelling_wakes_a_reader_in_another_task(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 2)
        async with running(toy, executor) as loop:
            stream = await loop.submit(request())
            reader = asyncio.create_task(collect(stream))
            await gate.wait()
            await asyncio.sleep(0.01)
            stream.cancel()
            assert len(await asyncio.wait_for(reader, 5)) == 2
            gate.open()

    asyncio.run(main())


def test_a_request_cancelled_before_it_was_picked_up_never_runs(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 0)
        async with running(toy, executor) as loop:
            first = await loop.submit(request(max_tokens=2))
            await gate.wait()
            (await loop.submit(request(1))).cancel()
            gate.open()
            await collect(first)
            await until_idle(loop)
            assert loop.stats().prompt_tokens == 5

    asyncio.run(main())


def test_draining_refuses_new_requests_and_finishes_the_old(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 2)
        async with running(toy, executor) as loop:
            stream = await loop.submit(request())
            await gate.wait()
            assert not await loop.drain(0.05)
            with pytest.raises(EngineStoppedError):
                await loop.submit(request())
            gate.open()
            assert await loop.drain(30)
            assert len(await collect(stream)) == 8
        assert await loop.drain(30)  # after the end, too

    asyncio.run(main())


def test_stopping_ends_running_waiting_and_unseen_requests(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 2)
        async with running(toy, executor, max_sequences=1) as loop:
            streams = [await loop.submit(request()), await loop.submit(request())]
            await gate.wait()
            streams.append(await loop.submit(request()))
            stopping = asyncio.create_task(asyncio.to_thread(loop.stop))
            await asyncio.sleep(0.01)
            gate.open()
            assert await stopping
            for stream in streams:
                with pytest.raises(EngineStoppedError):
                    await collect(stream)
            with pytest.raises(EngineStoppedError):
                await loop.submit(request())

    asyncio.run(main())


def test_a_step_that_never_returns_does_not_hang_stop(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()
        gate = Gate(executor, 0)
        async with running(toy, executor) as loop:
            stream = await loop.submit(request())
            await gate.wait()
            assert not loop.stop(timeout=0.05)
            gate.open()
            with pytest.raises(EngineStoppedError):
                await collect(stream)

    asyncio.run(main())


def test_a_failing_executor_reaches_the_reader(toy: SimpleNamespace) -> None:
    async def main() -> None:
        executor = toy.Executor()

        def fail(step: Step) -> None:
            raise RuntimeError("broken")

        async with running(toy, executor) as loop:
            executor.before_step = fail
            with pytest.raises(EngineFailedError):
                await collect(await loop.submit(request()))
            executor.before_step = lambda step: None
            assert len(await collect(await loop.submit(request()))) == 8
            assert loop.engine.healthy

    asyncio.run(main())


def test_a_bug_in_the_thread_ends_every_request(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(toy) as loop:

            def broken_step() -> None:
                raise AssertionError("a bug")

            monkeypatch.setattr(loop.engine, "step", broken_step)
            with pytest.raises(EngineFailedError):
                await collect(await loop.submit(request()))
            assert not loop.engine.healthy
            with pytest.raises(EngineStoppedError):
                await loop.submit(request())

    asyncio.run(main())


def test_a_closed_event_loop_does_not_disturb_the_engine(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    gate = Gate(executor, 2)
    loop = EngineLoop(toy.engine(executor))
    loop.start()
    kept: list[RequestStream] = []

    async def leave() -> None:
        kept.append(await loop.submit(request(max_tokens=100)))
        await gate.wait()

    async def ask() -> int:
        gate.open()
        return len(await collect(await loop.submit(request(1))))

    asyncio.run(leave())
    assert asyncio.run(ask()) == 8
    assert loop.stop()
    assert loop.stats().kv_usage == 0.0
    assert loop.stats().generation_tokens == 3 + 8  # the third token of the first found nobody at home
