"""How long answers get."""

from __future__ import annotations

NUM_BINS = 17  # of positions: 1, 2-3, 4-7, ...
DECAY = 0.99  # of the counts, per answer: the latest hundred matter


class AnswerLengths:
    """The chance that an answer ends by itself at a position, measured for powers of two.

    An answer that was cut by a limit counts as far as it went (Kaplan and Meier, "Nonparametric Estimation
    from Incomplete Observations", 1958).
    """

    def __init__(self) -> None:
        self._tokens = [0.0] * NUM_BINS  # generated at these positions
        self._ends = [0.0] * NUM_BINS  # of them, those after which the model ended the answer

    def ended(self, num_tokens: int, *, by_itself: bool) -> None:
        """An answer ended after so many tokens."""
        for index in range(NUM_BINS):
            first = 1 << index
            count = min(max(num_tokens - first + 1, 0), first)
            self._tokens[index] = self._tokens[index] * DECAY + count
            self._ends[index] *= DECAY
        if by_itself and num_tokens:
            self._ends[min(num_tokens.bit_length(), NUM_BINS) - 1] += 1

    def expected(self, num_tokens: int, limit: int) -> float:
        """Mean number of tokens still to come for an answer of `num_tokens` that ends at `limit` at last."""
        chance, total = 1.0, 0.0  # that it gets this far
        position = num_tokens + 1
        rate = 0.0
        while position <= limit and chance > 1e-3:
            index = min(position.bit_length(), NUM_BINS) - 1
            if self._tokens[index]:
                rate = min(self._ends[index] / self._tokens[index], 1.0)
            last = limit if index == NUM_BINS - 1 else min(limit, (2 << index) - 1)
            count = last - position + 1
            reached = chance * (1 - rate) ** count
            total += (chance - reached) / rate if rate else chance * count
            chance, position = reached, last + 1
        return total
