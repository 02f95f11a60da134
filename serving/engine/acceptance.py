"""How often proposed tokens turn out right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Prior(Protocol):
    """What is believed before anything was tried."""

    def rate(self, index: int) -> float:
        """Probability for `index`, 0 to 1."""


class Identity:
    """Index i of `size` bins stands for the middle of the i-th part of 0 .. 1."""

    def __init__(self, size: int) -> None:
        self._size = size

    def rate(self, index: int) -> float:
        """The middle of bin `index`."""
        return (index + 0.5) / self._size


class FixedPrior:
    """Rates that were guessed."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = rates

    def rate(self, index: int) -> float:
        """The guess for `index`; the last one holds for all beyond."""
        return self._rates[index] if index < len(self._rates) else self._rates[-1]


class Acceptance:
    """Success rates by index, say a position or a confidence, where the latest trials count most.

    A rate is that of the decayed counts and of `weight` imagined trials that went as `prior` says.
    """

    def __init__(self, size: int, prior: Prior, weight: float, decay: float, fading: float) -> None:
        self._last = size - 1
        self._trials = [0.0] * size
        self._hits = [0.0] * size
        self._prior = prior
        self._weight = weight
        self._decay = decay  # of the counts, per trial
        self._fading = fading  # of the counts, per step in which nothing is tried

    def rate(self, index: int) -> float:
        """Probability of success for `index`; the last one holds for all beyond."""
        index = min(index, self._last)
        hits = self._hits[index] + self._weight * self._prior.rate(index)
        return hits / (self._trials[index] + self._weight)

    def record(self, index: int, *, hit: bool) -> None:
        """Count one trial."""
        index = min(index, self._last)
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
        survival: list[float] = []
        alive = 1.0
        for index in indices:
            alive *= self.rate(index)
            survival.append(alive)
        return survival

    def score(self, indices: Iterable[int], proposed: Sequence[int], actual: Sequence[int]) -> None:
        """Count the proposals up to the first wrong one, as far as it is known what came."""
        for index, guess, token_id in zip(indices, proposed, actual, strict=False):
            self.record(index, hit=guess == token_id)
            if guess != token_id:
                return
