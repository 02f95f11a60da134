"""Plays the schedule forward, in numbers only: when sequences get their first token and when they end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from flashlet.serving.engine.step_budget import prompt_tokens
from flashlet.serving.engine.step_times import StepTimes

MAX_ROUNDS = 250  # that are played: what is behind goes on as it went
HEAD, SAMPLE = 16, 32  # sequences of a long queue that are played: those in front, and about so many others


@dataclass(slots=True, eq=False)
class Job:
    """What is left of a sequence."""

    prefill: float  # tokens to compute before the next one comes; 0: it decodes
    output: float  # tokens to come
    context: float  # tokens computed
    is_short: bool = False  # its prompt comes in short steps
    is_made_up: bool = False  # an arrival that is expected

    @property
    def size(self) -> float:
        """Tokens in the KV pool, once its prompt is computed."""
        return self.context + self.prefill


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler's."""

    max_sequences: int
    max_step_tokens: int
    prefill_chunk: int
    short_rows: int  # most rows of a step with a short prompt
    num_slots: int  # of the KV pool


@dataclass(slots=True)
class Arrivals:
    """Who comes when somebody leaves: on average, and as long as things go on as they did."""

    per_end: float = 0.0  # sequences that arrive for each one that ends, 0 to 1
    prefill: float = 0.0  # their tokens to compute
    output: float = 0.0
    _owed: float = field(default=0.0)

    def take(self) -> list[Job]:
        """Those who come after one more end."""
        self._owed += self.per_end
        if self._owed < 1:
            return []
        self._owed -= 1
        return [Job(self.prefill, self.output, 0.0, is_made_up=True)]


class Forecast:
    """Iterate over `events()` as far as they are of interest."""

    def __init__(
        self, times: StepTimes, limits: Limits, running: Sequence[Job], waiting: Sequence[Job], began: float
    ) -> None:
        """`began`: when the first step began, in milliseconds from now, so it is not positive."""
        self.now = began  # milliseconds
        self.tokens = 0.0  # that each decoding sequence has got
        self._times = times
        self._limits = limits
        self._contexts = 0.0  # tokens of context of all decoding sequences
        self._decoding: list[tuple[float, int, Job]] = []  # heap by `tokens` at the end
        self._prefilling = deque(job for job in running if job.prefill)
        self._waiting = deque(waiting)
        self._count = 0
        for job in running:
            if not job.prefill:
                self._decode(job)

    def add(self, job: Job) -> None:
        """Let `job` wait behind all others."""
        self._waiting.append(job)

    def settle(self, newcomers: Sequence[Job] = ()) -> None:
        """Go on until nobody waits any more, `newcomers` included, who arrive during the first step.

        Of a long queue a sample is played, and the time that it takes is stretched to what it stands for.
        """
        if newcomers:
            self._play_round(one_step=True)
            self._waiting.extend(newcomers)
        queue = [*self._waiting]
        behind = queue[HEAD:]
        sample = behind[:: math.ceil(len(behind) / SAMPLE) or 1]
        stretch = _work(behind) / _work(sample) if sample else 1.0
        self._start(queue[:HEAD])
        began = self.now
        self._start(sample)
        self.now = began + (self.now - began) * stretch

    def copy(self) -> Forecast:
        """The same state, to go on from it another way."""
        other = copy(self)
        other._decoding = [*self._decoding]
        other._prefilling = deque(replace(job) for job in self._prefilling)
        other._waiting = deque(replace(job) for job in self._waiting)
        return other

    def events(
        self, arrivals: Arrivals, newcomers: Sequence[Job] = (), num_beside: int = 0
    ) -> Iterator[tuple[float, Job, bool]]:
        """(milliseconds from now, who, whether it ended or else got its first token), in order.

        `newcomers` arrive now, during the first step; `num_beside` sequences that matter less decode in
        steps without prompts.
        """
        later = [*newcomers]
        for _ in range(MAX_ROUNDS):
            if self._decoding or self._prefilling or self._waiting:
                for job, ended in self._round(num_beside, one_step=bool(later)):
                    if ended:
                        later += arrivals.take()
                    if not job.is_made_up:
                        yield self.now, job, ended
            elif not later:
                return
            self.now = max(self.now, 0.0)  # the first step may take longer than expected
            self._waiting.extend(later)
            later.clear()

    def _start(self, queue: Sequence[Job]) -> None:
        """Go on until all of the queue have begun."""
        self._waiting = deque(queue)
        while self._waiting:
            self._play_round()

    def _play_round(self, *, one_step: bool = False) -> None:
        for _ in self._round(0, one_step=one_step):
            pass
        self.now = max(self.now, 0.0)  # the first step may take longer than expected

    def _round(self, num_beside: int, *, one_step: bool) -> Iterator[tuple[Job, bool]]:
        """One step, or several that are alike; then those who got their first token, or ended."""
        num_decoding = len(self._decoding)
        gain = self._times.tokens(num_decoding) if num_decoding else 1.0
        rows, reads, started = self._prefill(num_decoding)
        steps = 1
        if num_decoding and not started and not one_step:
            steps = max(1, math.ceil((self._decoding[0][0] - self.tokens) / gain))  # until the next one ends
        if rows and steps > 1:  # chunk after chunk of one prompt
            job = self._prefilling[0]
            steps = min(steps, 1 + int(job.prefill // rows))
            reads += rows * rows * (steps - 1) / 2
            job.prefill -= rows * (steps - 1)
            job.context += rows * (steps - 1)
            if not job.prefill:
                started = [self._prefilling.popleft()]
        beside = 0 if rows else num_beside
        samples = num_decoding + beside + len(started) / steps
        contexts = self._contexts + num_decoding * gain * steps / 2
        self.now += steps * self._times.ms_of(num_decoding + beside + rows, samples, contexts, reads)
        self.tokens += gain * steps
        self._contexts += num_decoding * gain * steps
        while self._decoding and self._decoding[0][0] <= self.tokens + 1e-6:
            job = heappop(self._decoding)[2]
            self._contexts -= job.size + job.output
            yield job, True
        for job in started:
            yield job, False
            job.output -= 1
            if job.output > 0:
                self._decode(job)
            else:
                yield job, True

    def _prefill(self, num_decoding: int) -> tuple[float, float, list[Job]]:
        """Rows of prompts in the next step, tokens that they read, and jobs whose last rows they are."""
        limits = self._limits
        budget = limits.max_step_tokens - num_decoding
        if num_decoding:
            context = int(self._prefilling[0].context) if self._prefilling else 0
            chunk = prompt_tokens(self._times, limits.prefill_chunk, num_decoding, self._contexts, context)
            budget = min(budget, chunk)
        rows = reads = 0.0
        done: list[Job] = []
        place = 0
        while rows < budget and (place < len(self._prefilling) or self._admit()):
            job = self._prefilling[place]
            if job.is_short:
                budget = min(budget, max(limits.short_rows - num_decoding, 1))
                if rows >= budget:
                    break
            count = min(job.prefill, budget - rows)
            reads += count * (job.context + count / 2)
            job.prefill -= count
            job.context += count
            rows += count
            if job.prefill:
                place += 1
            else:
                del self._prefilling[place]
                done.append(job)
        return rows, reads, done

    def _admit(self) -> bool:
        """Let the first waiting sequence begin, if it may."""
        num_running = len(self._decoding) + len(self._prefilling)
        if not self._waiting or num_running >= self._limits.max_sequences:
            return False
        held = self._contexts + sum(job.size for job in self._prefilling)
        if num_running and held + self._waiting[0].size > self._limits.num_slots:
            return False
        self._prefilling.append(self._waiting.popleft())
        return True

    def _decode(self, job: Job) -> None:
        self._count += 1
        self._contexts += job.context
        heappush(self._decoding, (self.tokens + job.output, self._count, job))


def _work(jobs: Sequence[Job]) -> float:
    """Rows to be computed."""
    return sum(job.prefill + job.output for job in jobs)
