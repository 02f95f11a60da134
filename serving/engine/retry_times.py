"""When refused clients should come back: each one to a place of its own."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

SHORTEST, LONGEST = 0.05, 60.0  # seconds; the OpenAI SDKs heed no longer ones
FRESH = 0.2  # seconds for which a forecast is used
UNKNOWN = 1.0  # seconds until the first place while nothing is known, and of them
PER_CLIENT = 0.02  # more for each further client
JITTER = 0.1  # share of the time by which a client comes later at most


class RetryTimes:
    """Gives the places that the next ends free up to refused clients, in order. Used under one lock."""

    def __init__(self, next_ends: Callable[[], list[float]]) -> None:
        """`next_ends`: seconds until each of the next sequences ends, as far as it is known."""
        self._next_ends = next_ends
        self._ends: list[float] = []  # seconds of time.perf_counter()
        self._made = float("-inf")
        self._promised: deque[float] = deque()  # when clients come back, ascending

    def next(self) -> float:
        """Seconds after which one more client finds a place."""
        now = time.perf_counter()
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        if now - self._made > FRESH:
            self._ends = [now + seconds for seconds in self._next_ends()]
            self._made = now
        at = self._place(len(self._promised), now)
        if at - now > LONGEST:
            return LONGEST * random.uniform(1 - 2 * JITTER, 1.0)
        self._promised.append(at)
        return (at - now) * random.uniform(1.0, 1.0 + JITTER)

    def _place(self, number: int, now: float) -> float:
        """When place `number`, from 0, becomes free: the ends go on at their average rate."""
        ends = self._ends
        if not ends:
            return now + UNKNOWN + number * PER_CLIENT
        interval = (ends[-1] - self._made) / len(ends)
        at = ends[number] if number < len(ends) else ends[-1] + (number - len(ends) + 1) * interval
        # Not with the client before, also where both are told to wait for longer than until their places.
        before = self._promised[-1] + interval / 2 if self._promised else now
        return max(at, before, now + SHORTEST)
