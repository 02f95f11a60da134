"""Proves, while sequences decode, that speculating is faster than not."""

from __future__ import annotations

import logging
from enum import Enum, auto

from flashlet.kernels.cpu import StepCosts

logger = logging.getLogger(__name__)

PERIOD = 128  # decode steps from one plain run to the next,
SURE_PERIOD = 384  # and where speculation
SURE = 1.6  # is so many times as fast: others that slow memory down by half do not make that a loss
PLAIN_RUN = 2  # steps without proposals in a row
FIRST_RUN = 16  # decode steps before the first plain run
DECAY = 0.98  # of the sums, per speculating step: they look back about fifty
TRIAL = 48  # speculating steps before a verdict
PAYS = 1.02  # the least speed-up: in plain steps, too, the draft model follows, which costs a little
SHORTEST_PAUSE, LONGEST_PAUSE = 256, 4_096  # decode steps without speculation after it did not pay


class Phase(Enum):
    """What the next decode step is for."""

    SPECULATE = auto()
    WIND_DOWN = auto()  # verify what is proposed, but let nothing be drafted: a plain step follows
    PLAIN = auto()
    OFF = auto()


class LiveComparison:
    """Counts decode steps, makes a few of them plain ones, and turns speculation off while it does not pay.

    Plain steps keep `costs` true, which say how long plain decoding would have taken for the same tokens.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._to_plain = FIRST_RUN
        self._pause = SHORTEST_PAUSE
        self._paused = 0  # steps left
        self._last_speedup = 1.0  # until there are new steps
        self._steps = 0  # speculating ones since the start or the last pause; the sums are over them, too
        self._tokens = self._weight = 0.0  # tokens per sequence, and steps
        self._ms = self._plain_ms = 0.0  # what they took, and what plain steps would have taken

    @property
    def phase(self) -> Phase:
        """What the next decode step is for."""
        if self._paused:
            return Phase.OFF
        if self._to_plain < PLAIN_RUN:
            return Phase.PLAIN
        return Phase.WIND_DOWN if self._to_plain == PLAIN_RUN else Phase.SPECULATE

    @property
    def speedup(self) -> float:
        """Tokens per millisecond of the latest speculating steps, relative to plain ones; 1 before any."""
        return self._plain_ms / self._ms if self._steps else self._last_speedup

    def step_done(self, num_sequences: int, num_tokens: int, ms: float, *, speculated: bool) -> None:
        """A decode step of `num_sequences` gave `num_tokens`; it verified or drafted if it `speculated`."""
        if self._paused:
            self._paused -= 1
            return
        self._to_plain = self._to_plain - 1 if self._to_plain else SURE_PERIOD
        if not speculated:
            return
        self._steps += 1
        self._tokens = self._tokens * DECAY + num_tokens / num_sequences
        self._weight = self._weight * DECAY + 1
        self._ms = self._ms * DECAY + ms
        self._plain_ms = (
            self._plain_ms * DECAY + num_tokens * self._costs.plain_ms(num_sequences) / num_sequences
        )
        if self._steps < TRIAL or self.speedup < SURE:
            self._to_plain = min(self._to_plain, PERIOD)
        if self._steps >= TRIAL:
            self._judge()

    def _judge(self) -> None:
        if self.speedup >= PAYS:
            self._pause = SHORTEST_PAUSE
            return
        logger.info(
            "speculation is off for %d steps: %.2f tokens per step and sequence came %.2f times as fast as "
            "without proposals",
            self._pause, self._tokens / self._weight, self.speedup,
        )  # fmt: skip
        self._paused = self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._to_plain = FIRST_RUN
        self._last_speedup = self.speedup
        self._steps = 0
        self._tokens = self._weight = self._ms = self._plain_ms = 0.0
