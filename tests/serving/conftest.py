"""Speculation that does not depend on how fast the machine is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.engine.engine import Engine

Speculating = Callable[..., Engine]


class MadeUpCosts(StepCosts):
    """Rows cost nothing, drafted tokens what is said; or with `rng` anything, so that anything happens."""

    known = drafts_known = True

    def __init__(self, rng: random.Random | None, draft_ms: float) -> None:
        super().__init__()
        self._rng = rng
        self._draft_ms = draft_ms

    def ms(self, rows: int) -> float:
        return 1e6 if self._rng is None else 1e6 * self._rng.uniform(0.5, 1.5)

    def draft_ms(self, num_tokens: int) -> float:
        per_token = self._draft_ms if self._rng is None else self._rng.uniform(0.0, 0.4)
        return 1e6 * num_tokens * per_token

    def verifying(self, rows: int, most: int) -> list[float]:
        return [self.ms(rows + count) for count in range(most + 1)]

    def drafting(self, rows: int, most: int) -> list[float]:
        return [self.ms(rows + count) + self.draft_ms(count) for count in range(most + 1)]

    def plain_ms(self, num_sequences: int) -> float:
        return self.ms(num_sequences)

    def observe(self, num_sequences: int, rows: int, num_drafted: int, ms: float) -> float:
        return ms


@pytest.fixture
def free_costs() -> StepCosts:
    """By which every proposal pays."""
    return MadeUpCosts(None, draft_ms=0.0)


@pytest.fixture(scope="session")
def speculating() -> Speculating:
    """Gives an engine made-up costs in place of measured ones, and returns it."""

    def prepare(engine: Engine, rng: random.Random | None = None, draft_ms: float = 0.0) -> Engine:
        drafter = engine.scheduler.drafter
        assert drafter is not None
        while engine.is_calibrating:
            engine.step()
        drafter.costs = MadeUpCosts(rng, draft_ms)
        return engine

    return prepare
