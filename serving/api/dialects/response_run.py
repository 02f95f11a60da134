"""One response from its first step to its last, whether a client waits for it or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flashlet.serving.api.dialects.response_writer import ResponseWriter
from flashlet.serving.api.errors import error_body, error_kind
from flashlet.serving.api.logprobs import chat_logprobs
from flashlet.serving.errors import RequestError

if TYPE_CHECKING:
    from flashlet.model.sampling import TokenLogprobs
    from flashlet.serving.api.conversation import Conversation
    from flashlet.serving.api.service import LoadedModel
    from flashlet.serving.engine.request import TokenEvent

logger = logging.getLogger(__name__)


class ResponseRun:
    """Turns the tokens of a conversation into the events of a response."""

    def __init__(
        self,
        conversation: Conversation,
        model: LoadedModel,
        response: dict[str, Any],
        keep: Callable[[Sequence[bytes]], Awaitable[None]],
    ) -> None:
        """`keep` stores the response; it is awaited before the last events, and gets them."""
        (self._answer,) = conversation.answers
        self.response = response
        self.error: RequestError | None = None  # why it failed
        self._generation = conversation.generation
        self._model = model
        self._writer = ResponseWriter(response, self._answer)
        self._keep = keep
        self._scores: list[TokenLogprobs] = []  # of tokens whose text has not come yet

    def cancel(self) -> None:
        """End it before the next step. Harmless if it has ended."""
        self._generation.cancel()

    async def events(self) -> AsyncIterator[list[bytes]]:
        """Events as they come. What fails becomes an event, but is raised if nothing has run yet and a client
        waits.
        """
        background = self.response["status"] == "queued"
        if background:
            yield [*self._writer.opening()]
        started, reason = False, None
        try:
            async for _, event in self._generation.events():
                new: list[bytes] = []
                if not started:
                    new += [] if background else self._writer.opening()
                    new.append(self._writer.start())
                    started = True
                new += self._push(event)
                if event.finish_reason is not None:
                    reason = self._answer.finish_reason(event.finish_reason)
                if new:
                    yield new
        except RequestError as exc:
            if not started and not background:
                raise
            self.error = exc
            last = [*self._writer.fail(error_body(exc))]
        else:
            last = [*self._writer.end(reason, self._generation.usage())]
        await self._keep(last)
        yield last

    def failure(self, exc: Exception) -> bytes:
        """The event of what `events` raised."""
        if error_kind(exc).code == "internal_error":
            logger.error("a response failed", exc_info=exc)
        return self._writer.error(error_body(exc))

    def _push(self, event: TokenEvent) -> Iterator[bytes]:
        if event.logprobs is not None and not self._model.only_ends(event, self._generation.requests[0]):
            self._scores.append(event.logprobs)
        for delta in self._answer.push(event, has_token=False):
            logprobs = chat_logprobs(self._model.tokenizer, self._scores)["content"] if self._scores else []
            self._scores.clear()
            yield from self._writer.push(delta, logprobs)


class BackgroundRun:
    """A response that runs whether or not anybody listens; its events are kept while it does."""

    def __init__(self, run: ResponseRun) -> None:
        self.run = run
        self.log: list[bytes] = []
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._drive())

    async def cancel(self) -> None:
        """End it before the next step, and wait until that is stored."""
        self.run.cancel()
        await asyncio.wait({self.task})

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Events behind number `after`, as they come."""
        position = after + 1
        while True:
            changed, ended = self._changed, self.task.done()
            if position < len(self.log):
                yield b"".join(self.log[position:])
                position = len(self.log)
            if ended:
                return
            await changed.wait()

    async def _drive(self) -> None:
        try:
            async for events in self.run.events():
                self.log += events
                self._tell()
        except Exception:
            logger.exception("a background response failed")
        finally:
            asyncio.get_running_loop().call_soon(self._tell)  # when the task is done

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
