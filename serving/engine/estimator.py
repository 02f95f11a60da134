"""Says before a sequence runs when its first token and its end will come."""

from __future__ import annotations

import math
import time
from collections import abc
from dataclasses import dataclass
from itertools import islice

from flashlet.serving.engine.answer_lengths import AnswerLengths
from flashlet.serving.engine.forecast import Arrivals, Forecast, Job, Limits
from flashlet.serving.engine.plan import Plan
from flashlet.serving.engine.scheduler import Scheduler
from flashlet.serving.engine.sequence import Sequence, SequenceStatus
from flashlet.serving.engine.step_times import StepLoad

MAX_GAP = 0.05  # seconds between two steps; a longer one was no hand-over but a rest
DECAY = 0.95  # of the averages, per sequence
LONG_QUEUE = 24  # sequences; what is behind is estimated from a forecast that is
FRESH = 0.25  # seconds old at most
WINDOW = 10.0  # seconds over which arrivals are compared with ends


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is expected of one sequence."""

    prompt_tokens: int
    cached_tokens: int  # of them, those that lie in the prefix cache or are about to
    queue_position: int  # sequences that would start before it
    output_tokens: float  # the mean of answers with this limit
    ttft_ms: float | None  # None: nothing has run yet, so it is not known how long steps take
    total_ms: float | None


class Estimator:
    """Learns from steps and ends on the engine's thread; estimates on one other thread, from a snapshot."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.lengths = AnswerLengths()
        self._scheduler = scheduler
        self._times = scheduler.times
        self._step_began: float | None = None  # of the step that runs; None: none does
        self._last_end = 0.0
        self._num_arrived = self._num_ended = 0.0  # decayed over WINDOW
        self._counted = 0.0  # when they were updated
        self._mean_prefill = self._mean_output = 0.0
        self._last_tail: _Tail | None = None

    def arrived(self, sequence: Sequence) -> None:
        """A sequence was queued."""
        if sequence.request.priority <= 0:  # others do not delay those who count
            self._decay()
            self._num_arrived += 1
            self._mean_prefill += (1 - DECAY) * (_prefill(sequence) - self._mean_prefill)

    def step_begins(self) -> None:
        """A step is about to be planned."""
        now = time.perf_counter()
        # What comes between two steps, handing over events and picking up sequences, is part of their cost.
        self._step_began = self._last_end if now - self._last_end < MAX_GAP else now

    def step_ended(self, plan: Plan, load: StepLoad, num_tokens: int) -> None:
        """The step is over; `num_tokens` were generated in it. `load` is from before its results."""
        now = time.perf_counter()
        assert self._step_began is not None
        self._times.observe(load, 1e3 * (now - self._step_began))
        if plan.parts and all(part.decodes for part in plan.parts):
            self._times.observe_tokens(len(plan.parts), num_tokens)
        self._step_began, self._last_end = None, now

    def ended(self, sequence: Sequence, *, by_itself: bool) -> None:
        """A sequence came to its end."""
        if sequence.max_tokens:
            self.lengths.ended(sequence.num_output_tokens, by_itself=by_itself)
        if sequence.request.priority <= 0:
            self._decay()
            self._num_ended += 1
            self._mean_output += (1 - DECAY) * (sequence.num_output_tokens - self._mean_output)

    def estimate(self, sequence: Sequence, pending: abc.Sequence[Sequence]) -> Estimate:
        """What to expect if `sequence` were queued now, behind the `pending` ones."""
        num_prompt, priority = sequence.num_prompt_tokens, sequence.request.priority
        cached = 0 if sequence.reads_whole_prompt else self._scheduler.blocks.num_known(sequence)
        own = Job(num_prompt - cached, self._output(sequence), cached, priority > 0)
        ahead = [
            item for item in [*self._scheduler.waiting.copy(), *pending] if item.request.priority <= priority
        ]
        first = end = None
        if self._times.known:
            beside = sum(item.request.priority > priority for item in [*self._scheduler.running])
            num_beside = min(beside, self._scheduler.budget.short_rows())
            if len(ahead) > LONG_QUEUE:
                forecast, passed = self._tail(priority, ahead, pending)
                forecast.add(own)
                events = forecast.events(self._arrivals(), (), num_beside)
            else:
                forecast, passed = self._forecast(priority), 0.0
                newcomers = [self._job(item) for item in pending if item.request.priority <= priority]
                events = forecast.events(self._arrivals(), [*newcomers, own], num_beside)
            first, end = (max(moment - passed, 0.1) for moment in _moments(own, forecast, events))
        return Estimate(num_prompt, cached, len(ahead), self._output(sequence), first, end)

    def ends(self, count: int) -> list[float]:
        """Milliseconds until each of the next `count` sequences ends; fewer if there are not so many."""
        if not self._times.known:
            return []
        events = self._forecast(math.inf).events(Arrivals())
        return [*islice((now for now, _, ended in events if ended), count)]

    def _forecast(self, priority: float) -> Forecast:
        """A forecast of what runs and waits up to `priority`."""
        scheduler, config = self._scheduler, self._scheduler.config
        began = self._step_began
        limits = Limits(
            config.max_sequences,
            config.max_step_tokens,
            config.prefill_chunk,
            scheduler.budget.short_rows(),
            scheduler.blocks.num_blocks * scheduler.blocks.block_size,
        )
        running, waiting = [*scheduler.running], scheduler.waiting.copy()
        return Forecast(
            self._times,
            limits,
            [self._job(item) for item in running if item.request.priority <= priority],
            [self._job(item) for item in waiting if item.request.priority <= priority],
            0.0 if began is None else 1e3 * min(began - time.perf_counter(), 0.0),
        )

    def _tail(
        self, priority: int, ahead: abc.Sequence[Sequence], pending: abc.Sequence[Sequence]
    ) -> tuple[Forecast, float]:
        """A forecast at the moment when the last one `ahead` has begun, made a while ago: it is long to
        play a long queue, so it is done once for many who ask. And the milliseconds since then.
        """
        now = time.perf_counter()
        tail = self._last_tail
        if tail is None or tail.priority != priority or now - tail.made > FRESH:
            newcomers = [self._job(item) for item in pending if item.request.priority <= priority]
            forecast = self._forecast(priority)
            forecast.settle(newcomers)
            tail = self._last_tail = _Tail(forecast, priority, now)
        else:
            for item in ahead:
                if item.index > tail.last:
                    tail.forecast.add(self._job(item))
            tail.forecast.settle()
        tail.last = max(item.index for item in ahead)
        return tail.forecast.copy(), 1e3 * (now - tail.made)

    def _job(self, sequence: Sequence) -> Job:
        """What is left of a sequence that is here."""
        is_short = sequence.request.priority > 0
        if sequence.status is SequenceStatus.WAITING:
            prefill = _prefill(sequence)
            return Job(prefill, self._output(sequence), len(sequence.tokens) - prefill, is_short)
        num_uncomputed = sequence.num_uncomputed
        prefill = num_uncomputed if num_uncomputed > 1 else 0
        return Job(prefill, self._output(sequence), sequence.num_computed, is_short)

    def _output(self, sequence: Sequence) -> float:
        """Mean number of tokens still to come."""
        done, limit = sequence.num_output_tokens, sequence.max_tokens
        if sequence.request.ignore_eos or done >= limit:
            return max(limit - done, 0)
        if done == 0 and sequence.estimate is not None:
            return sequence.estimate.output_tokens
        return max(self.lengths.expected(done, limit), 1.0)

    def _arrivals(self) -> Arrivals:
        share = min(1.0, self._num_arrived / self._num_ended) if self._num_ended else 0.0
        return Arrivals(share, self._mean_prefill, max(self._mean_output, 1.0))

    def _decay(self) -> None:
        now = time.perf_counter()
        kept = 0.5 ** ((now - self._counted) / WINDOW)
        self._num_arrived *= kept
        self._num_ended *= kept
        self._counted = now


@dataclass(slots=True)
class _Tail:
    """A forecast that has played a queue to its end."""

    forecast: Forecast
    priority: int
    made: float  # seconds of time.perf_counter()
    last: int = -1  # index of the latest sequence in it


def _moments(
    own: Job, forecast: Forecast, events: abc.Iterable[tuple[float, Job, bool]]
) -> tuple[float, float]:
    """When `own` gets its first token, and its last."""
    first: float | None = None
    begun = 0.0
    for now, job, ended in events:
        if job is own:
            if first is None:
                first, begun = now, forecast.tokens
            if ended:
                return first, now
    if first is None or forecast.tokens <= begun:
        return forecast.now, forecast.now  # at the earliest
    return first, first + (forecast.now - first) * own.output / (forecast.tokens - begun)


def _prefill(sequence: Sequence) -> int:
    """Tokens to compute before a waiting sequence gets its next one."""
    cached = sequence.estimate.cached_tokens if sequence.estimate is not None else 0
    return max(len(sequence.tokens) - cached, 1)
