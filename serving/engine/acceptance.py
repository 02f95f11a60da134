"""How often proposed tokens turn out right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Acceptance:
    """Success rates by index, say a position or a confidence, where the latest trials count most.

    A rate is that of the decayed counts and of `weight` imagined trials that went as `prior` says.
    """

    def __init__(self, prior: Sequence[float], weight: float, decay: float, fading: float) -> None:
        """`prior`: rates by index; the `rates` of another Acceptance are followed as they change."""
        self._prior = prior
        self._last = len(prior) - 1
        self._trials = [0.0] * len(prior)
        self._hits = [0.0] * len(prior)
        self._weight = weight
        self._decay = decay  # of the counts, per trial
        self._fading = fading  # of the counts, per step in which nothing is tried
        self.rates = [*prior]  # always the same list; as they were when something was last counted

    def rate(self, index: int) -> float:
        """Probability of success for `index`; the last one holds for all beyond."""
        index = min(index, self._last)
        hits = self._hits[index] + self._weight * self._prior[index]
        return hits / (self._trials[index] + self._weight)

    def record(self, index: int, *, hit: bool) -> None:
        """Count one trial."""
        index = min(index, self._last)
        self._trials[index] = self._trials[index] * self._decay + 1
        self._hits[index] = self._hits[index] * self._decay + hit
        self.rates[index] = self.rate(index)

    def fade(self) -> None:
        """Trust the counts a little less, so that what failed is tried again some time."""
        self._trials = [count * self._fading for count in self._trials]
        self._hits = [count * self._fading for count in self._hits]
        self.rates[:] = map(self.rate, range(len(self.rates)))

    def survival(self, indices: Iterable[int]) -> list[float]:
        """Probabilities that the first, the first two, ... of some proposals are right.

        Each succeeds, given those before it, as often as its index does.
        """
        # Not by calls of rate(): planning asks for a hundred rates in a step of many sequences.
        hits, trials, prior, weight, last = self._hits, self._trials, self._prior, self._weight, self._last
        survival: list[float] = []
        alive = 1.0
        for index in indices:
            at = index if index < last else last
            alive *= (hits[at] + weight * prior[at]) / (trials[at] + weight)
            survival.append(alive)
        return survival

    def score(self, indices: Iterable[int], proposed: Sequence[int], actual: Sequence[int]) -> None:
        """Count the proposals up to the first wrong one, as far as it is known what came."""
        for index, guess, token_id in zip(indices, proposed, actual, strict=False):
            self.record(index, hit=guess == token_id)
            if guess != token_id:
                return
