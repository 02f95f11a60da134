"""The engine: requests in, steps, token events out. One thread owns it."""

from __future__ import annotations

import itertools
import logging
import time
from collections import abc
from dataclasses import asdict, replace
from typing import Protocol

from flashlet.kernels.cpu import StepCosts
from flashlet.model.executor import Executor
from flashlet.serving.engine.block_manager import BlockManager
from flashlet.serving.engine.calibration import Calibration
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.deadlines import Deadlines, check_reachable
from flashlet.serving.engine.drafting import Drafter
from flashlet.serving.engine.estimator import Estimate, Estimator
from flashlet.serving.engine.plan import Plan
from flashlet.serving.engine.pooling import MeanPooling
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.retry_times import RetryTimes
from flashlet.serving.engine.scheduler import Scheduler
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.stats import EngineStats
from flashlet.serving.engine.step_times import StepLoad
from flashlet.serving.engine.stop_checker import StopChecker, StreamDecoder
from flashlet.serving.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineFailedError,
    InvalidRequestError,
    QueueFullError,
    RequestError,
)

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # failed steps in a row after which the executor is given up
NEXT_ENDS = 40  # from which it is computed when refused clients should come back
SEED_ROWS = (1, 2, 4, 8, 16, 32)  # whose measured times the estimates begin with

SequenceEvent = tuple[Sequence, TokenEvent | RequestError]


class TextDecoding(Protocol):
    """What the engine needs of a tokenizer."""

    def stream_decoder(self, *, continuation: bool) -> StreamDecoder:
        """A fresh decoder for one sequence; `continuation`: its text follows an earlier one."""


class Engine:
    """Runs sequences on an executor. Not thread-safe, except `create`, `stats` and `healthy`."""

    def __init__(self, executor: Executor, tokenizer: TextDecoding, config: EngineConfig) -> None:
        self.config = config
        blocks = BlockManager(executor.num_blocks, executor.block_size, config.enable_prefix_cache)
        self._drafter: Drafter | None = None
        self._calibration: Calibration | None = None
        if config.draft != "none":
            costs = StepCosts()
            self._drafter = Drafter(costs, executor.max_draft_tokens if config.draft == "auto" else 0)
            self._calibration = Calibration(executor, blocks, costs, config.max_step_tokens)
        self.scheduler = Scheduler(config, blocks, self._drafter)
        self._estimator = Estimator(self.scheduler)
        self._retry_times = RetryTimes(self._next_ends)
        self._deadlines = Deadlines()
        self.healthy = True
        self._executor = executor
        self._tokenizer = tokenizer
        context_length = config.context_length or executor.config.context_length
        self._limit = min(
            context_length, executor.config.context_length, executor.num_blocks * executor.block_size
        )
        self._indices = itertools.count()
        self._failures = 0  # in a row

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def is_calibrating(self) -> bool:
        """Whether `step` has something to measure, even without sequences."""
        return self._calibration is not None and not self._calibration.done

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence, prompt and answer together: the model's context or the KV pool."""
        return self._limit

    def submit(self, request: GenerationRequest) -> Sequence:
        """Check `request` and queue it; raises what `create` raises."""
        sequence = self.create(request)
        self.add(sequence)
        return sequence

    def create(self, request: GenerationRequest, pending: abc.Sequence[Sequence] = ()) -> Sequence:
        """Check `request` and make its sequence, given that the `pending` ones are about to be added.

        Raises InvalidRequestError, ContextLengthError, QueueFullError, DeadlineError or EngineDeadError.
        """
        if not self.healthy:
            raise EngineDeadError("the engine has failed and runs no more requests")
        max_tokens = self._check(request)
        self._check_queue(pending)
        sequence = self._sequence(request, max_tokens)
        sequence.estimate = self._estimator.estimate(sequence, pending)
        check_reachable(request, sequence.estimate)
        return sequence

    def estimate(
        self, requests: abc.Sequence[GenerationRequest], pending: abc.Sequence[Sequence] = ()
    ) -> list[Estimate]:
        """What to expect of `requests` if they were queued now, in this order. Raises as `create`, but for
        a full queue and time limits.
        """
        before = [*pending]
        for request in requests:
            sequence = self._sequence(replace(request, grammar=None), self._check(request))
            sequence.estimate = self._estimator.estimate(sequence, before)
            before.append(sequence)
        return [item.estimate for item in before[len(pending) :] if item.estimate is not None]

    def _sequence(self, request: GenerationRequest, max_tokens: int) -> Sequence:
        eos_token_ids = self._executor.config.eos_token_ids
        # A grammar says where spaces are, the first one included.
        is_bound = request.grammar is not None and not request.free_start
        keeps_space = request.continues_prompt or is_bound
        decoder = self._tokenizer.stream_decoder(continuation=keeps_space)
        checker = StopChecker(request, decoder, max_tokens, eos_token_ids)
        constraint = None
        if request.grammar is not None:
            put_off = eos_token_ids if request.ignore_eos else ()
            constraint = request.grammar.constraint(checker.stop_token_ids, request.min_tokens, put_off)
        # Feature num_layers + 1 is the hidden state after the final norm.
        pooling = MeanPooling(self._executor.config.num_layers + 1) if request.embed else None
        return Sequence(next(self._indices), request, max_tokens, checker, constraint, pooling)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence made by `create`."""
        self._estimator.arrived(sequence)
        self._deadlines.add(sequence)
        self.scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End `sequence` without a further event and free its blocks. Harmless if it has ended."""
        if not sequence.is_finished:
            self._estimator.ended(sequence, by_itself=False)
        self.scheduler.remove(sequence)

    def step(self) -> list[SequenceEvent]:
        """Advance by one step. If it fails, every running sequence ends with EngineFailedError."""
        if self._calibration is not None and self._may_calibrate(self._calibration):
            self._calibrate(self._calibration)
        events = self._end_late()
        return events + self._run_step() if self.has_work else events

    def stats(self) -> EngineStats:
        """A snapshot; from another thread it may mix two steps."""
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=scheduler.blocks.usage,
            spec_speedup=1.0 if self._drafter is None else self._drafter.comparison.speedup,
            **asdict(scheduler.counters),
        )

    def check_integrity(self) -> None:
        """AssertionError if blocks leaked or the books disagree."""
        self.scheduler.check_integrity()

    def _run_step(self) -> list[SequenceEvent]:
        """Plan a step, run it, write its results back, and learn from how long that took."""
        started = time.perf_counter()
        self._estimator.step_begins()
        plan = Plan()
        try:
            plan = self.scheduler.schedule()
            step = plan.step()
            load = StepLoad.of(plan)
            events = self.scheduler.update(plan, self._executor.execute(step))
        except Exception as error:
            return self._fail(error, plan)
        self._failures = 0
        self._estimator.step_ended(plan, load, len(events))
        for sequence, event in events:
            if sequence.is_finished:
                by_itself = isinstance(event, TokenEvent) and event.finish_reason == "stop"
                self._estimator.ended(sequence, by_itself=by_itself)
        if self._drafter is not None:
            self._drafter.step_done(plan.parts, len(events), 1e3 * (time.perf_counter() - started))
        return [*events]

    def _end_late(self) -> list[SequenceEvent]:
        """End the sequences whose time is over."""
        late = self._deadlines.late()
        for sequence, _ in late:
            self.cancel(sequence)
        return [*late]

    def _may_calibrate(self, calibration: Calibration) -> bool:
        if calibration.done or self.scheduler.has_prompts:  # with them, steps are long already
            return False
        return not (calibration.can_wait and self.has_work)

    def _calibrate(self, calibration: Calibration) -> None:
        """Measure one thing; estimates begin with what is known once the rest can wait."""
        assert self._drafter is not None
        costs, could_wait = self._drafter.costs, calibration.can_wait
        calibration.advance()
        if calibration.can_wait and not could_wait and costs.known:
            self.scheduler.times.seed([(rows, costs.ms(rows)) for rows in SEED_ROWS])

    def _fail(self, error: Exception, plan: Plan) -> list[SequenceEvent]:
        """End what runs, and after repeated failures also what waits."""
        self._failures += 1
        self.healthy = self._failures < MAX_FAILURES
        logger.error("step failed (%d in a row)", self._failures, exc_info=error)
        # Those of the plan, too: one may have ended in this step, and its last event is lost.
        ended = dict.fromkeys([*(part.sequence for part in plan.parts), *self.scheduler.running])
        if not self.healthy:
            ended |= dict.fromkeys(self.scheduler.waiting)
        for sequence in ended:
            self.scheduler.remove(sequence)
        self.scheduler.blocks.drop_cache()  # a failed step may have left anything in the pool
        kind = EngineFailedError if self.healthy else EngineDeadError
        failure = kind("the engine failed while it ran this request")
        failure.__cause__ = error
        return [(sequence, failure) for sequence in ended]

    def _check(self, request: GenerationRequest) -> int:
        """Refuse what could never be served; returns the most tokens to generate."""
        _check_token_ids("prompt", request.prompt, self._executor.config.vocab_size)
        _check_token_ids("stop_token_ids", request.stop_token_ids, self._executor.config.vocab_size)
        bias_ids = [token_id for token_id, _ in request.sampling.logit_bias]
        _check_token_ids("logit_bias", bias_ids, self._executor.config.vocab_size)
        if not request.prompt:
            raise InvalidRequestError("prompt: expected at least one token, got none", param="prompt")
        if "" in request.stop:
            raise InvalidRequestError("stop: expected non-empty strings, got an empty one", param="stop")
        max_tokens = self._max_tokens(request)
        if not 0 <= request.min_tokens <= max_tokens:
            raise InvalidRequestError(
                f"min_tokens: expected 0 to {max_tokens}, got {request.min_tokens}", param="min_tokens"
            )
        return max_tokens

    def _max_tokens(self, request: GenerationRequest) -> int:
        """The request's own limit, or what fits behind the prompt."""
        wanted, num_prompt = request.max_tokens, len(request.prompt)
        if wanted is not None and wanted < 0:
            raise InvalidRequestError(f"max_tokens: expected at least 0, got {wanted}", param="max_tokens")
        total = num_prompt + (1 if wanted is None else wanted)
        if total > self._limit:
            answer = "" if wanted is None or num_prompt >= self._limit else f" and max_tokens is {wanted}"
            raise ContextLengthError(
                f"this model's maximum context length is {self._limit} tokens; "
                f"the prompt has {num_prompt}{answer}",
                param="max_tokens" if answer else "prompt",
            )
        return self._limit - num_prompt if wanted is None else wanted

    def _check_queue(self, pending: abc.Sequence[Sequence]) -> None:
        """Refuse if more sequences are here than may run and wait."""
        limit = self.config.max_sequences + self.config.max_waiting
        present = len(self.scheduler.running) + len(self.scheduler.waiting) + len(pending)
        if present >= limit:
            retry_after = self._retry_times.next()
            raise QueueFullError(
                f"{present} sequences run or wait, the limit is {limit}; "
                f"there should be a place in {retry_after:.1f} s",
                retry_after,
            )

    def _next_ends(self) -> list[float]:
        """Seconds until each of the next sequences ends, as far as that is known."""
        return [ms / 1e3 for ms in self._estimator.ends(NEXT_ENDS)]


def _check_token_ids(name: str, token_ids: tuple[int, ...] | list[int], vocab_size: int) -> None:
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(f"{name}: expected ids from 0 to {vocab_size - 1}, got {wrong}", param=name)
