"""What a decode step costs by its rows and by the tokens drafted in it, in milliseconds."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import exp

RECENT = 7  # steps whose median counts: a few slow ones change nothing
LEAST_FIRST, LEAST_FURTHER = 0.02, 0.005  # that drafted tokens cost, of a step of one row
STALE = 512  # observations after which plain steps of so many sequences say nothing any more
LEARNED_ROWS = 64  # up to which live steps correct what was measured
RATE = 0.05  # share of its error that one step corrects
LARGEST_ERROR = 0.2  # that counts: a hiccup, or a change of everything, says little about rows
MEAN_RATE = 0.02  # at which the mean of the errors follows them
FADING = 1e-3  # of a correction, each time that such a step is seen: contexts end, and the machine changes


class _Samples:
    """The latest observations of one thing."""

    __slots__ = ("last", "median", "values")

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=RECENT)
        self.median = 0.0
        self.last = 0  # number of the latest observation

    def add(self, value: float, number: int) -> None:
        self.values.append(value)
        self.median = sorted(self.values)[(len(self.values) - 1) // 2]
        self.last = number


class StepCosts:
    """Measured at the start (see calibration.py); live steps say how much slower everything is by now, and,
    little by little, what so many rows cost in comparison: with longer contexts another row costs more, and
    while memory is slow it costs less.

    Not one with StepTimes, whose smooth curve over any kind of step would hide the stairs between one count
    of rows and the next.
    """

    def __init__(self) -> None:
        self._measured: dict[tuple[int, int], list[float]] = {}  # ms by rows and tokens drafted, ascending
        self._rows: list[int] = []  # measured at the start, ascending
        self._base: list[float] = []  # ms, parallel to it
        self._between: list[float] = []  # ms by rows, computed from them
        self._live: list[float] = []  # the same, as corrected by live steps
        self._draft_steps: dict[int, float] = {}  # ms of a step of one row by tokens drafted in it, as above
        self._drafting: list[float] = []  # ms by tokens drafted, computed from them
        self._plain: dict[int, _Samples] = {}  # ms of steps without proposals and drafts, by sequences
        self._learned = [0.0] * (LEARNED_ROWS + 1)  # by rows: ln(what they cost / what was measured)
        self._drift = _Samples()  # of now and then: ms of a step / what it was believed to cost
        self._mean_error = 0.0  # of steps of any rows
        self._number = 0

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return len(self._rows) > 1

    @property
    def drafts_known(self) -> bool:
        """Whether it was measured what drafting costs."""
        return bool(self._draft_steps)

    def measured(self, rows: int, ms: float) -> None:
        """Take a measurement of the start; of several the median counts."""
        self._between.clear()
        self._live.clear()
        self._drafting.clear()
        at = bisect_left(self._rows, rows)
        if at == len(self._rows) or self._rows[at] != rows:
            self._rows.insert(at, rows)
            self._base.insert(at, ms)
        self._base[at] = self._median(rows, 0, ms)

    def measured_draft(self, num_tokens: int, ms: float) -> None:
        """Take a measurement of the start: a step of one row that drafted so many tokens."""
        self._drafting.clear()
        self._draft_steps[num_tokens] = self._median(1, num_tokens, ms)

    def _median(self, rows: int, num_drafted: int, ms: float) -> float:
        """Of all measurements of one thing. The best ones may be from different hours of the machine."""
        values = self._measured.setdefault((rows, num_drafted), [])
        insort(values, ms)
        return values[(len(values) - 1) // 2]

    def observe(self, num_sequences: int, rows: int, num_drafted: int, ms: float) -> float:
        """A decode step of so many rows, proposals included, in which so many tokens were drafted.

        Returns what such a step usually takes by now.
        """
        self._number += 1
        expected = self._upto(rows)[rows] + self._drafts_upto(num_drafted)[num_drafted]
        self._drift.add(ms / expected, self._number)
        if rows == num_sequences and not num_drafted:
            self._plain.setdefault(rows, _Samples()).add(ms, self._number)
        usual = expected * self._drift.median
        self._learn(rows, ms / usual - 1)
        return usual

    def plain_ms(self, num_sequences: int) -> float:
        """Milliseconds of a decode step without proposals and drafts."""
        live = self._plain.get(num_sequences)
        if live is not None and self._number - live.last <= STALE:
            return live.median
        return self.ms(num_sequences)

    def ms(self, rows: int) -> float:
        """Milliseconds of a decode step, proposals included."""
        return self._upto(rows)[rows] * self._now

    def draft_ms(self, num_tokens: int) -> float:
        """Milliseconds of drafting so many tokens, of one sequence or several."""
        return self._drafts_upto(num_tokens)[num_tokens] * self._now

    def verifying(self, rows: int, most: int) -> list[float]:
        """Milliseconds of decode steps of `rows` rows and 0, 1, ... `most` proposals."""
        now = self._now
        return [ms * now for ms in self._upto(rows + most)[rows : rows + most + 1]]

    def drafting(self, rows: int, most: int) -> list[float]:
        """The same, if the proposals are drafted in the step before."""
        now, live = self._now, self._upto(rows + most)
        drafts = self._drafts_upto(most)[: most + 1]
        return [(ms + drafting) * now for ms, drafting in zip(live[rows:], drafts, strict=False)]

    @property
    def _now(self) -> float:
        """How much slower everything is by now."""
        return self._drift.median or 1.0

    def _upto(self, rows: int) -> list[float]:
        """Milliseconds by rows, as corrected, of so many at least."""
        for count in range(len(self._live), rows + 1):
            self._between.append(self._base_ms(count))
            self._live.append(self._between[count] * exp(self._learned[min(count, LEARNED_ROWS)]))
        return self._live

    def _drafts_upto(self, num_tokens: int) -> list[float]:
        """Milliseconds by tokens drafted, of so many at least."""
        for count in range(len(self._drafting), num_tokens + 1):
            self._drafting.append(self._draft_base_ms(count) if count else 0.0)
        return self._drafting

    def _learn(self, rows: int, error: float) -> None:
        """A step of so many rows took (1 + `error`) times as long as usual."""
        error = min(max(error, -LARGEST_ERROR), LARGEST_ERROR)
        # Slow steps are further from the median than fast ones. Only what these rows have more of than others
        # is theirs, or else rows that are never compared with others would get dearer and dearer.
        surplus = error - self._mean_error
        self._mean_error += MEAN_RATE * surplus
        if rows < LEARNED_ROWS:
            self._upto(rows + 1)
            for index, rate in ((rows - 1, RATE / 2), (rows, RATE), (rows + 1, RATE / 2)):
                self._learned[index] += rate * surplus - FADING * self._learned[index]
                self._live[index] = self._between[index] * exp(self._learned[index])
            if rows + 1 == LEARNED_ROWS:  # whose correction holds for all beyond
                del self._live[rows + 1 :], self._between[rows + 1 :]

    def _base_ms(self, rows: int) -> float:
        """What was measured at the start, on straight lines between and beyond."""
        at = min(max(bisect_left(self._rows, rows), 1), len(self._rows) - 1)
        left, right = self._rows[at - 1], self._rows[at]
        low, high = min(self._base[at - 1 :]), min(self._base[at:])  # more rows are never faster
        return max(low + (high - low) / (right - left) * (rows - left), 1e-3)

    def _draft_base_ms(self, num_tokens: int) -> float:
        """On a straight line through the fewest and the most tokens measured; the first one costs most.

        A step without drafts may by chance have taken longer: a drafted token still costs something.
        """
        plain = self._base_ms(1)
        fewest, most = min(self._draft_steps), max(self._draft_steps)
        first = max(self._draft_steps[fewest] - plain, LEAST_FIRST * plain) / fewest
        if most == fewest:
            return num_tokens * first
        slope = (self._draft_steps[most] - plain - first) / (most - 1)
        return first + (num_tokens - 1) * max(slope, LEAST_FURTHER * plain)
