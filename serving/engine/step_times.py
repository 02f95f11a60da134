"""How long steps take, of any kind, learned from every step that runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from flashlet.serving.engine.plan import Plan

KNOTS = tuple(1 << exponent for exponent in range(13))  # rows whose times are learned; straight lines between
SAMPLES, DECODE_READS, PREFILL_READS = 16, 8192, 65536  # amounts that count like one knot in an update
RATE = 0.1  # share of an error that one step corrects, once a knot has seen a few
TOKEN_RATE = 0.03  # the same of the tokens per sequence, which differ more from step to step


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step has to do. Proposals are not counted: they are part of what a decoding sequence costs."""

    rows: float  # decoding sequences and prompt tokens
    samples: float = 0.0  # sequences that get a token
    decode_reads: float = 0.0  # tokens of context that decoding sequences read
    prefill_reads: float = 0.0  # the same for every prompt token

    @classmethod
    def of(cls, plan: Plan) -> StepLoad:
        """The load of a planned step. Call it before its results are written back."""
        samples = decode_reads = rows = 0
        prefill_reads = 0.0
        for part in plan.parts:
            start = part.sequence.num_computed
            rows += part.num_tokens
            samples += part.samples
            if part.num_tokens == 1:
                decode_reads += start
            else:
                prefill_reads += part.num_tokens * (start + part.num_tokens / 2)
        return cls(rows, samples, decode_reads, prefill_reads)


class StepTimes:
    """Milliseconds of a step: a curve over its rows, plus something per sampled token and token read.

    Learns by normalized least mean squares (Widrow and Hoff, "Adaptive switching circuits", 1960). StepCosts
    says more precisely, but of decode steps only, what another row costs.
    """

    def __init__(self) -> None:
        self._ms = [0.0] * len(KNOTS)
        self._seen = [0] * len(KNOTS)  # steps near the knot; 0: its time is guessed from the others
        self._slopes = [0.0, 0.0, 0.0]  # ms per SAMPLES, DECODE_READS and PREFILL_READS
        self._tokens = [0.0] * len(KNOTS)  # per decoding sequence, by their number; 0: not seen

    @property
    def known(self) -> bool:
        """Whether any step was seen."""
        return any(self._seen)

    def ms(self, load: StepLoad) -> float:
        """Milliseconds that a step should take; 0 before anything was learned."""
        return self.ms_of(load.rows, load.samples, load.decode_reads, load.prefill_reads)

    def ms_of(self, rows: float, samples: float, decode_reads: float, prefill_reads: float) -> float:
        """The same, from the fields of a load."""
        at, share = _place(rows)
        slopes = self._slopes
        return (
            self._ms[at] * (1 - share)
            + self._ms[at + 1] * share
            + slopes[0] * samples / SAMPLES
            + slopes[1] * decode_reads / DECODE_READS
            + slopes[2] * prefill_reads / PREFILL_READS
        )

    def rows_within(
        self, ms: float, num_decoding: int = 0, decode_reads: float = 0.0, context: int = 0
    ) -> int | None:
        """Most rows of a step that should take `ms`; None if nothing is known.

        So many of them decode and read so many tokens; the others are prompt tokens behind `context`.
        """
        if not self.known:
            return None
        slopes = self._slopes
        reading = slopes[2] * context / PREFILL_READS  # milliseconds per prompt token
        curve = [value + reading * (rows - num_decoding) for rows, value in zip(KNOTS, self._ms, strict=True)]
        ms -= slopes[0] * num_decoding / SAMPLES + slopes[1] * decode_reads / DECODE_READS
        at = max((index for index, value in enumerate(curve[:-1]) if value <= ms), default=0)
        slope = (curve[at + 1] - curve[at]) / (KNOTS[at + 1] - KNOTS[at])
        further = int((ms - curve[at]) / slope) if slope > 0 else 0
        return max(1, KNOTS[at] + further)

    def tokens(self, num_sequences: int) -> float:
        """Tokens that each of so many decoding sequences gets in a step: 1, and more with speculation."""
        at = _place(num_sequences)[0]
        return self._tokens[at] or 1.0

    def seed(self, points: Sequence[tuple[int, float]]) -> None:
        """Begin with (rows, milliseconds) that were measured in ascending order, unless steps were seen."""
        if not self.known:
            for rows, ms in points:
                if rows in KNOTS:
                    self._learn_knot(KNOTS.index(rows), ms)

    def observe(self, load: StepLoad, ms: float) -> None:
        """A step with that load took so long."""
        at, share = _place(load.rows)
        nearest = at + (share > 0.5)
        extra = self.ms(load) - self._ms[at] * (1 - share) - self._ms[at + 1] * share
        if not self._seen[nearest]:
            guess = self._ms[nearest] or ms
            self._learn_knot(nearest, min(max(ms - extra, ms / 2), 2 * guess))  # it may be a hiccup, too
        predicted = self.ms(load)
        error = min(max(ms - predicted, -predicted), predicted)  # a hiccup is no trend
        amounts = (
            load.samples / SAMPLES,
            load.decode_reads / DECODE_READS,
            load.prefill_reads / PREFILL_READS,
        )
        norm = (1 - share) ** 2 + share**2 + sum(amount * amount for amount in amounts)
        self._seen[nearest] += 1
        rate = max(RATE, 0.5 / self._seen[nearest]) * error / norm
        self._ms[at] = max(self._ms[at] + rate * (1 - share), 1e-3)
        self._ms[at + 1] = max(self._ms[at + 1] + rate * share, 1e-3)
        for index, amount in enumerate(amounts):
            self._slopes[index] = max(self._slopes[index] + RATE * error / norm * amount, 0.0)

    def observe_tokens(self, num_sequences: int, num_tokens: int) -> None:
        """So many decoding sequences got so many tokens in a step."""
        at = _place(num_sequences)[0]
        old = self._tokens[at] or 1.0
        self._tokens[at] = old + TOKEN_RATE * (num_tokens / num_sequences - old)

    def _learn_knot(self, index: int, ms: float) -> None:
        """The first time of a knot. Those without one are guessed: half fixed below, proportional above."""
        self._ms[index] = ms
        self._seen[index] = 1
        seen = [i for i, count in enumerate(self._seen) if count]
        for i in range(len(KNOTS)):
            if self._seen[i]:
                continue
            below = max((j for j in seen if j < i), default=None)
            above = min((j for j in seen if j > i), default=None)
            if below is None:
                assert above is not None
                self._ms[i] = self._ms[above] * (1 + KNOTS[i] / KNOTS[above]) / 2
            elif above is None:
                self._ms[i] = self._ms[below] * KNOTS[i] / KNOTS[below]
            else:
                share = (KNOTS[i] - KNOTS[below]) / (KNOTS[above] - KNOTS[below])
                self._ms[i] = self._ms[below] * (1 - share) + self._ms[above] * share


def _place(rows: float) -> tuple[int, float]:
    """The knot at or below `rows`, and the share of the way to the next one."""
    at = min(max(bisect_right(KNOTS, rows) - 1, 0), len(KNOTS) - 2)
    return at, max((rows - KNOTS[at]) / (KNOTS[at + 1] - KNOTS[at]), 0.0)
