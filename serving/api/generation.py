"""The sequences of one API request: submitted, merged into one stream, counted and cancelled together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from flashlet.serving.admin.metrics import Metrics
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.errors import RequestError

if TYPE_CHECKING:
    from flashlet.serving.engine.request_stream import RequestStream


class Generation:
    """Iterate over `events()` once; usage is complete when that ends."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        streams: Sequence[RequestStream],
        metrics: Metrics,
        n: int,
    ) -> None:
        self.requests = requests
        self._streams = streams
        self._metrics = metrics
        self._num_choices = n
        self._prompt_tokens = [len(request.prompt) for request in requests]
        self._cached_tokens = [0] * len(requests)
        self._output_tokens = [0] * len(requests)
        self._accepted_tokens = [0] * len(requests)
        self._rejected_tokens = [0] * len(requests)

    @classmethod
    async def submit(
        cls, service: Service, model: LoadedModel, requests: Sequence[GenerationRequest], n: int
    ) -> Generation:
        """Queue all sequences or none. `n`: choices per prompt.

        Raises:
            RequestError: whatever the engine says to the first one that it refuses.
        """
        streams: list[RequestStream] = []
        try:
            for request in requests:
                streams.append(await model.engine_loop.submit(request))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return cls(requests, streams, service.metrics, n)

    @property
    def headers(self) -> dict[str, str]:
        """What the headers of the answer say: the seed, with which it can be had again."""
        return {"x-flashlet-seed": str(self.requests[0].sampling.seed)}

    def cancel(self) -> None:
        """Stop whatever still runs; `events()` then ends. Calling it twice, or after the end, is harmless."""
        for stream in self._streams:
            stream.cancel()

    async def events(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """Events of all sequences as they come, each with its sequence's index.

        Raises:
            RequestError: a sequence failed; the others are cancelled.
        """
        try:
            if len(self._streams) == 1:
                async for event in self._follow(0):
                    yield 0, event
            else:
                async for item in self._merged():
                    yield item
        finally:
            self.cancel()

    async def _follow(self, index: int) -> AsyncIterator[TokenEvent]:
        """Events of one sequence, counted and timed."""
        stream, metrics = self._streams[index], self._metrics
        last_token = 0.0
        finish = "abort"
        try:
            async for event in stream:
                if event.token_id is not None:
                    now = time.perf_counter()
                    if last_token:
                        metrics.inter_token_latency.observe(now - last_token)
                    last_token = now
                self._cached_tokens[index] = event.num_cached_tokens
                self._output_tokens[index] = event.num_output_tokens
                self._accepted_tokens[index] = event.num_accepted
                self._rejected_tokens[index] = event.num_rejected
                if event.finish_reason is not None:
                    finish = event.finish_reason
                yield event
        except RequestError:
            finish = "error"
            raise
        finally:
            metrics.sequence_ended(stream, finish)

    async def _merged(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """Events of several sequences through one queue; each has a task that fills it."""
        queue: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async for event in self._follow(index):
                    queue.put_nowait((index, event))
            except Exception as exc:
                queue.put_nowait((index, exc))
            else:
                queue.put_nowait((index, None))

        tasks = [asyncio.create_task(pump(index)) for index in range(len(self._streams))]
        try:
            remaining = len(tasks)
            while remaining:
                index, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    remaining -= 1
                else:
                    yield index, item
        finally:
            for task in tasks:
                task.cancel()

    def usage(self) -> dict[str, Any]:
        """The `usage` object so far; a prompt counts once, however many choices it has."""
        prompt = sum(self._prompt_tokens[:: self._num_choices])
        output = sum(self._output_tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens[:: self._num_choices])},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": sum(self._accepted_tokens),
                "rejected_prediction_tokens": sum(self._rejected_tokens),
            },
        }
