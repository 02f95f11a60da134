"""How requests meet answers that run already, or are there: retries, resumed streams, repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import Response

from flashlet.serving.admin.metrics import Metrics
from flashlet.serving.api.answer_cache import AnswerCache
from flashlet.serving.api.attempt import Attempt
from flashlet.serving.api.body import Handler, JSONRequest
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.middleware import is_own
from flashlet.serving.api.shared_answer import SharedAnswer
from flashlet.serving.errors import InvalidRequestError, NotFoundError

MAX_KEPT_BYTES = 64 << 20  # of answers that have ended and wait for a client to come back


class Answering:
    """The answers that run or were just given. Lives on the event loop's thread."""

    def __init__(self, config: ServerConfig, metrics: Metrics, fingerprint: Callable[[], str | None]) -> None:
        """`fingerprint`: of the model that would serve a request now; None if none would."""
        self._config = config
        self._metrics = metrics
        self._fingerprint = fingerprint
        self._cache = AnswerCache(config.answer_cache_bytes)
        self._running: dict[tuple[str, str, bytes], list[SharedAnswer]] = {}  # by Attempt.what
        self._by_key: dict[tuple[str, str], tuple[Attempt, SharedAnswer]] = {}  # by owner and Idempotency-Key
        self._streams: dict[tuple[str, str], SharedAnswer] = {}  # by owner and the id for resuming
        self._kept: dict[SharedAnswer, tuple[asyncio.TimerHandle, Callable[[], None]]] = {}  # oldest first
        self._kept_bytes = 0

    async def answer(self, request: JSONRequest, handler: Handler) -> Response:
        """Let the request join its original, or answer it from the cache, or run `handler`.

        Raises:
            InvalidRequestError: the Idempotency-Key came with another request before.
            Exception: whatever `handler` raises.
        """
        if is_own(request):
            return await handler(request)
        attempt = Attempt.of(request)
        original = self._original(attempt)
        if original is not None:
            self._metrics.joined_requests += 1
            return await original.join(request)
        fingerprint = self._fingerprint() if self._cache.takes(attempt, request.decoded) else None
        cached = None if fingerprint is None else self._cache.get(attempt, fingerprint)
        if cached is not None:
            self._metrics.answer_cache_hits += 1
            return cached
        return await self._run(attempt, fingerprint, request, handler)

    def resume(self, owner: str, stream_id: str, start: int) -> Response:
        """The stream after its first `start` events. Raises NotFoundError if they are not here any more."""
        answer = self._streams.get((owner, stream_id))
        response = None if answer is None else answer.resume(start)
        if response is None:
            raise NotFoundError(f"no stream '{stream_id[:100]}' can be taken up after event {start}")
        self._metrics.resumed_streams += 1
        return response

    def close(self) -> None:
        """Wait no longer for clients that may come back: the server shuts down."""
        for answer in [answer for answers in self._running.values() for answer in answers]:
            answer.abandon_unheard()

    async def _run(
        self, attempt: Attempt, fingerprint: str | None, request: JSONRequest, handler: Handler
    ) -> Response:
        """Answer a first attempt, where others find it."""
        answer = SharedAnswer(
            linger=self._config.retry_grace if attempt.idempotency_key else 0.0,
            resume_linger=self._config.resume_seconds,
            on_end=partial(self._ended, attempt, fingerprint),
        )
        self._running.setdefault(attempt.what, []).append(answer)
        if attempt.idempotency_key:
            self._by_key[attempt.owner, attempt.idempotency_key] = attempt, answer
        response = await answer.run(request, handler)
        if answer.resume_id is not None:
            self._streams[attempt.owner, answer.resume_id] = answer
        return response

    def _original(self, attempt: Attempt) -> SharedAnswer | None:
        """What this request is a retry of, if that can still be joined from its start."""
        if attempt.idempotency_key:
            first, answer = self._by_key.get((attempt.owner, attempt.idempotency_key), (None, None))
            if first is None or answer is None or answer.abandoned:
                return None
            if first.what != attempt.what:
                raise InvalidRequestError(
                    "Idempotency-Key: the same key came with another request; use a new key for each",
                    "Idempotency-Key",
                    "idempotency_mismatch",
                )
            return answer if answer.from_start else None
        if not attempt.is_retry:
            return None
        joinable = [answer for answer in self._running.get(attempt.what, ()) if answer.from_start]
        # Among equals the one that was joined least: two clients retrying the same meet one original each.
        return min(joinable, key=lambda answer: answer.num_joined, default=None)

    def _ended(self, attempt: Attempt, fingerprint: str | None, answer: SharedAnswer) -> None:
        """Keep an answer for whoever may come back, and for repeats."""
        running = self._running[attempt.what]
        running.remove(answer)
        if not running:
            del self._running[attempt.what]
        record = answer.record() if fingerprint is not None else None
        if fingerprint is not None and record is not None:
            self._cache.put(attempt, fingerprint, *record)
        if answer.linger and answer.complete:
            self._keep(attempt, answer)
        else:
            self._forget(attempt, answer)

    def _keep(self, attempt: Attempt, answer: SharedAnswer) -> None:
        """Keep an answer that has ended for a while, and drop the oldest ones if they are too large."""
        forget = partial(self._forget, attempt, answer)
        self._kept[answer] = asyncio.get_running_loop().call_later(answer.linger, forget), forget
        self._kept_bytes += answer.num_bytes
        while self._kept_bytes > MAX_KEPT_BYTES:
            timer, forget_oldest = next(iter(self._kept.values()))
            timer.cancel()
            forget_oldest()

    def _forget(self, attempt: Attempt, answer: SharedAnswer) -> None:
        """Nobody can ask for this answer any more."""
        if self._kept.pop(answer, None) is not None:
            self._kept_bytes -= answer.num_bytes
        self._streams.pop((attempt.owner, answer.resume_id or ""), None)
        key = attempt.owner, attempt.idempotency_key or ""
        if self._by_key.get(key, (None, None))[1] is answer:
            del self._by_key[key]
