"""How much a step may compute, so that it does not take longer than others should wait for it."""

from __future__ import annotations

import math
import time
from bisect import bisect_right

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.plan import Plan
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.step_times import StepTimes

STEP_MS = 40.0  # what a step may take for which several streams wait
LEAST_SHARE = 4  # a quarter of a chunk of a prompt comes along all the same
SHORT_STEP_MS = 10.0  # what a step may take with sequences of a priority number above 0, or
STRETCH = 1.5  # times what it would take without them, whichever is more
AT_REST = 2.0  # times as long while nobody else comes
REST = 10.0  # seconds after the last step with anybody else
UNKNOWN_ROWS = 16  # prompt tokens of such a step while it is not known how long it would take
LEAST_PREFILL = 4  # prompt tokens that come along all the same


def prompt_tokens(times: StepTimes, chunk: int, num_decoding: int, reads: float, context: int) -> int:
    """Prompt tokens that come along with sequences that decode: `chunk`, or fewer if the step gets long.

    A stream waits for two steps or three if they bring no text, parts of a character for instance. `reads`:
    tokens of context that decoding sequences read; `context`: those of the prompt that were computed before.
    """
    rows = times.rows_within(STEP_MS, num_decoding, reads, context) or 0
    return min(chunk, max(rows - num_decoding, chunk // LEAST_SHARE, num_decoding))


class StepBudget:
    """Says who may decode in a step, and then how many prompt tokens may come along.

    Those who matter less, with a priority number above 0, come in short steps, because the next arrival
    waits for the step that runs. At least one of them always gets on.
    """

    def __init__(self, config: EngineConfig, times: StepTimes) -> None:
        self._config = config
        self._times = times
        self._last_served = -math.inf  # seconds; anybody who does not matter less
        # of the step that is planned
        self._level = math.inf
        self._rows = 0  # sequences that decode
        self._reads = 0.0  # tokens of context that they read
        self._limit: float | None = None  # milliseconds; None: nobody in it matters less

    @property
    def is_hasty(self) -> bool:
        """Whether somebody is here, or was a moment ago, who must not wait for the others."""
        return time.perf_counter() - self._last_served < REST

    def begin(self, level: float) -> None:
        """Plan a step in which prompts up to this priority number are computed; infinity: there are none."""
        if level <= 0:
            self._last_served = time.perf_counter()
        self._level = level
        self._rows = 0
        self._reads = 0.0
        self._limit = None

    def admits(self, sequence: Sequence) -> bool:
        """Whether `sequence` may decode in the step, which is counted. Ask in order of rank."""
        if sequence.request.priority <= 0:
            self._last_served = time.perf_counter()
        elif self._limit is None:
            self._limit = self._limit_behind(self._rows, self._reads)
        elif not self._has_time(self._limit, sequence.num_computed):
            return False
        self._rows += 1
        self._reads += sequence.num_computed
        return True

    def prefill(self, context: int) -> int:
        """Prompt tokens of the step; `context` of the first prompt were computed before."""
        budget = self._config.max_step_tokens - self._rows
        if self._rows:
            chunk = self._config.prefill_chunk
            budget = min(budget, prompt_tokens(self._times, chunk, self._rows, self._reads, context))
        if self._level > 0:
            limit = self._limit or self._limit_behind(self._rows, self._reads)
            rows = self._times.rows_within(limit, self._rows, self._reads, context)
            budget = min(budget, max(rows - self._rows, LEAST_PREFILL) if rows else UNKNOWN_ROWS)
        return budget

    def proposals(self, plan: Plan, costs: StepCosts) -> int:
        """Most proposals of the step, whose other rows are planned."""
        room = self._config.max_step_tokens - plan.num_rows
        num_prompt_tokens = sum(part.num_tokens for part in plan.parts if not part.decodes)
        if num_prompt_tokens:
            return min(room, num_prompt_tokens // 4)  # the step is long already
        if len(plan.parts) < 2 or not costs.known:
            return room  # nobody else waits for them
        rows, most = plan.num_rows, min(room, self._config.prefill_chunk)
        limit = max(STEP_MS, STRETCH * costs.ms(rows))
        return bisect_right(range(1, most + 1), limit, key=lambda count: costs.ms(rows + count))

    def short_rows(self) -> int:
        """Rows of a step in which everybody matters less, about; on any thread."""
        return self._times.rows_within(self._limit_behind(0, 0.0)) or UNKNOWN_ROWS

    def _limit_behind(self, rows: int, reads: float) -> float:
        """Milliseconds that a step may take in which so many decode who do not matter less."""
        rows = max(rows, 1)
        without = self._times.ms_of(rows, rows, reads, 0.0)
        return max(SHORT_STEP_MS, STRETCH * without) * (1.0 if self.is_hasty else AT_REST)

    def _has_time(self, limit: float, num_computed: int) -> bool:
        """Whether one more may decode, and a prompt still gets on."""
        rows = self._rows + 1
        prefill = 0 if self._level == math.inf else LEAST_PREFILL
        return self._times.ms_of(rows + prefill, rows, self._reads + num_computed, 0.0) <= limit
