"""Measures what decode steps cost, with made-up tokens in blocks that nobody uses."""

from __future__ import annotations

import logging
import time

from flashlet.model.executor import Executor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, Step
from flashlet.serving.engine.block_manager import BlockManager
from flashlet.serving.engine.step_costs import StepCosts

logger = logging.getLogger(__name__)

ROWS = (1, 4, 8, 16, 2, 3, 6, 12, 32)  # the coarse picture first
REPEATS = 3
SECONDS = 0.5  # in all; a slow model is measured in fewer places
_TOKEN = 1  # any will do
_GREEDY = SamplingParams(temperature=0)


class Calibration:
    """One short measurement at a time, so that a request that arrives meanwhile waits for one only."""

    def __init__(self, executor: Executor, blocks: BlockManager, costs: StepCosts, max_rows: int) -> None:
        self._executor = executor
        self._blocks = blocks
        self._costs = costs
        self._seconds = 0.0
        longest = min(max_rows, executor.config.context_length - 1)
        points = [(count, 0) for count in ROWS if count <= longest]
        # (rows, tokens to draft): the first of each warm up, without the next ones there is no speculation.
        drafts = [(1, 1), (1, executor.max_draft_tokens)] if executor.max_draft_tokens else []
        warm_up = [(1, 0), *drafts[:1]]
        more = [*points[2:], *drafts, *(points + drafts) * (REPEATS - 1)]
        self._num_warm_up, self._num_more = len(warm_up), len(more)
        self._todo = [*warm_up, *points[:2], *drafts, *more]  # of `more` as much as there is time for

    @property
    def done(self) -> bool:
        """Whether nothing is left to measure."""
        return not self._todo

    def advance(self) -> None:
        """Run the next measurement, unless too few blocks are empty. Call it between two steps."""
        rows, drafted = self._todo.pop(0)
        table = self._blocks.empty_blocks(self._blocks.blocks_for(rows + 1))
        if table is None:
            return
        try:
            seconds = self._run(rows, drafted, table)
        except Exception:
            logger.exception("what steps cost could not be measured: there is little speculation, or none")
            self._todo.clear()
            return
        self._seconds += seconds
        if self._seconds > SECONDS and len(self._todo) <= self._num_more:
            self._todo.clear()
        if self._num_warm_up:
            self._num_warm_up -= 1
        elif drafted:
            self._costs.measured_draft(drafted, 1e3 * seconds)
        else:
            self._costs.measured(rows, 1e3 * seconds)

    def _run(self, rows: int, drafted: int, table: list[int]) -> float:
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
