"""How often proposed tokens turn out right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import mul


class Acceptance:
    """Success rates by index, say a position or a confidence, where the latest trials count most.

    A rate is that of the decayed counts and of `weight` imagined trials that went as `prior` says.
    """

    def __init__(
        self, size: int, prior: Callable[[int], float], weight: float, decay: float, fading: float
    ) -> None:
        """`prior`: rate by index, asked each time; it may be that of another Acceptance."""
        self.size = size
        self._trials = [0.0] * size
        self._hits = [0.0] * size
        self._prior = prior
        self._weight = weight
        self._decay = decay  # of the counts, per trial
        self._fading = fading  # of the counts, per step in which nothing is tried

    def rate(self, index: int) -> float:
        """Probability of success for `index`; the last one holds for all beyond."""
        index = min(index, self.size - 1)
        hits = self._hits[index] + self._weight * self._prior(index)
        return hits / (self._trials[index] + self._weight)

    def record(self, index: int, *, hit: bool) -> None:
        """Count one trial."""
        index = min(index, self.size - 1)
        self._trials[index] = self._trials[index] * self._decay + 1
        self._hits[index] = self._hits[index] * self._decay + hit

    def fade(self) -> None:
        """Trust the counts a little less, so that what failed is tried again some time."""
        self._trials = [count * self._fading for count in self._trials]
        self._hits = [count * self._fading for count in self._hits]

    def survival(self, indices: Iterable[int]) -> list[float]:
        """Probabilities that the first, the first two, ... of some proposals are right.

        Each succeeds, given those before it, as often as its index does.
        """
        return [*accumulate(map(self.rate, indices), mul)]

    def score(self, indices: Iterable[int], proposed: Sequence[int], actual: Sequence[int]) -> None:
        """Count the proposals up to the first wrong one, as far as it is known what came."""
        for index, guess, token_id in zip(indices, proposed, actual, strict=False):
            self.record(index, hit=guess == token_id)
            if guess != token_id:
                return
