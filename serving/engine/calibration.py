"""Measures what decode steps cost, with made-up tokens in blocks that nobody uses."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import NamedTuple

from flashlet.kernels.cpu import StepCosts
from flashlet.model.executor import Executor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, Step
from flashlet.serving.engine.block_manager import BlockManager

logger = logging.getLogger(__name__)

ROWS = (1, 4, 8, 16, 2, 3, 5, 6, 9, 12, 32)  # the coarse picture first; tiles of eight end in a stair
REPEATS = 2  # of everything, while others may wait
FURTHER_REPEATS = 4  # while nobody does: of few measurements one that was disturbed counts too much
# Large caches learn slowly what is read again and again: it takes about a hundred steps until one is as fast
# as it will be later, and some more after steps of another kind.
WARM_UP_STEPS, WARM_UP_SECONDS = 100, 0.35  # at most
RUN_STEPS, RUN_SECONDS = 8, 0.05  # of one thing in a row, at most; the best of the second half counts
SECONDS, ALL_SECONDS = 1.2, 3.2  # without and with further repeats; a slow model is measured in fewer places
_TOKEN = 1  # any will do
_GREEDY = SamplingParams(temperature=0)


class _Task(NamedTuple):
    rows: int
    drafted: int
    until: float  # seconds of measuring after which it is left out


class Calibration:
    """One short measurement at a time, so that a request that arrives meanwhile waits for one only."""

    def __init__(self, executor: Executor, blocks: BlockManager, costs: StepCosts, max_rows: int) -> None:
        self._executor = executor
        self._blocks = blocks
        self._costs = costs
        longest = min(max_rows, executor.config.context_length - 1)
        points = [(count, 0) for count in ROWS if count <= longest]
        # (rows, tokens to draft): without the first ones there is no speculation.
        drafts = [(1, 1), (1, executor.max_draft_tokens)] if executor.max_draft_tokens else []
        needed, others = [*points[:1], *drafts, *points[1:2]], points[2:]
        everything = needed + others
        self._todo = deque(
            [
                *(_Task(*what, until=math.inf) for what in needed),
                *(_Task(*what, until=SECONDS) for what in others + everything * (REPEATS - 1)),
                *(_Task(*what, until=ALL_SECONDS) for what in everything * FURTHER_REPEATS),
            ]
        )
        self._seconds = 0.0
        self._run: list[float] = []  # seconds of each step of the run
        self._is_warm = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to measure."""
        return not self._todo

    @property
    def can_wait(self) -> bool:
        """Whether what is left can be done without: it makes sure of what is known, and fills gaps."""
        return self.done or self._todo[0].until == ALL_SECONDS

    def advance(self) -> None:
        """Run the next measurement, unless too few blocks are empty. Call it between two steps."""
        rows, drafted, _ = self._todo[0]
        table = self._blocks.empty_blocks(self._blocks.blocks_for(rows + 1))
        if table is None:
            self._next()
            return
        try:
            seconds = self._measure(rows, drafted, table)
        except Exception:
            logger.exception("what steps cost could not be measured: there is little speculation, or none")
            self._todo.clear()
            return
        self._seconds += seconds
        self._run.append(seconds)
        if not self._is_warm:
            self._is_warm = len(self._run) >= WARM_UP_STEPS or self._seconds >= WARM_UP_SECONDS
            if self._is_warm:
                self._run.clear()
        elif len(self._run) >= RUN_STEPS or (len(self._run) > 1 and sum(self._run) > RUN_SECONDS):
            ms = 1e3 * min(self._run[len(self._run) // 2 :])
            if drafted:
                self._costs.measured_draft(drafted, ms)
            else:
                self._costs.measured(rows, ms)
            self._next()

    def _next(self) -> None:
        """Go on with the next thing that there is time for."""
        self._run.clear()
        self._todo.popleft()
        while self._todo and self._seconds > self._todo[0].until:
            self._todo.popleft()

    def _measure(self, rows: int, drafted: int, table: list[int]) -> float:
        """Seconds of a step that verifies `rows - 1` proposals and drafts `drafted` tokens."""
        piece = SequenceSlice(
            token_ids=(_TOKEN,),
            start=0,
            block_table=table,
            samples=[SampleRequest(_GREEDY, position) for position in range(1, rows + 1)],
            proposed=(_TOKEN,) * (rows - 1),
            draft=DraftRequest(drafted, start=0) if drafted else None,
        )
        started = time.perf_counter()
        self._executor.execute(Step([piece]))
        return time.perf_counter() - started
