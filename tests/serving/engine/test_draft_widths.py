"""How many proposals are worth a step."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest

from flashlet.serving.engine.acceptance import Acceptance
from flashlet.serving.engine.draft_widths import best_widths
from flashlet.serving.engine.sequence_draft import Match, SequenceDraft


def test_free_rows_are_filled_and_dear_ones_are_not() -> None:
    def stairs(count: int) -> float:
        return 5.0 if count <= 3 else 5.0 + 2 * (count - 3)

    assert best_widths([[0.5, 0.3, 0.1, 0.05]], 1, stairs, 99) == [3]
    assert best_widths([[0.99, 0.98, 0.97, 0.96, 0.95]], 1, lambda count: 5.0 + count, 99) == [5]
    assert best_widths([[0.1, 0.05]], 1, lambda count: 5.0 + count, 99) == [0]
    assert best_widths([[0.5, 0.4], [0.9, 0.1], []], 3, stairs, 99) == [2, 1, 0]
    assert best_widths([[0.5, 0.4], [0.9, 0.1]], 2, stairs, 2) == [1, 1]


def test_a_step_of_the_stairs_may_be_worth_climbing() -> None:
    """The first proposal alone does not pay, four together do."""
    assert best_widths([[0.9, 0.9, 0.9, 0.9]], 1, lambda count: 1.0 if count == 0 else 2.0, 99) == [4]


@pytest.mark.parametrize("seed", range(30))
def test_no_other_widths_are_better(seed: int) -> None:
    rng = random.Random(seed)
    curves = [sorted((rng.random() for _ in range(rng.randint(0, 4))), reverse=True) for _ in range(3)]
    costs = [sorted(rng.uniform(4, 9) for _ in range(13))[i] for i in range(13)]

    def rate(widths: tuple[int, ...] | list[int]) -> float:
        tokens = 3 + sum(sum(curve[:width]) for curve, width in zip(curves, widths, strict=True))
        return tokens / costs[sum(widths)]

    every = itertools.product(*(range(len(curve) + 1) for curve in curves))
    assert rate(best_widths(curves, 3, costs.__getitem__, 99)) == pytest.approx(max(map(rate, every)))


def _constant(rate: float) -> Acceptance:
    return Acceptance([rate] * 9, weight=1, decay=1.0, fading=1.0)


def test_acceptance_follows_the_latest_trials_and_forgets_when_nothing_is_tried() -> None:
    acceptance = Acceptance((0.6, 0.5, 0.5), weight=3, decay=0.9, fading=0.9)
    assert acceptance.survival(range(3)) == pytest.approx([0.6, 0.3, 0.15])
    for _ in range(50):
        acceptance.score(range(3), [1, 2, 3], [1, 9, 3])
    first, second, _ = acceptance.survival(range(3))
    assert first > 0.85 and second < 0.2
    assert acceptance.rate(2) == 0.5  # never reached
    for _ in range(100):
        acceptance.fade()
    assert acceptance.survival(range(2)) == pytest.approx([0.6, 0.3], abs=0.01)


def test_a_sequence_without_trials_believes_what_the_others_show() -> None:
    shared = Acceptance((0.5, 0.5), weight=1, decay=1.0, fading=0.5)
    own = Acceptance(shared.rates, weight=1, decay=1.0, fading=0.5)
    shared.record(0, hit=True)
    assert (own.rate(0), own.rate(1)) == (0.75, 0.5)
    assert own.survival(range(2)) == [0.75, 0.375]
    shared.fade()
    assert own.rate(0) == pytest.approx(2 / 3)
    own.record(0, hit=False)
    shared.record(0, hit=True)
    assert (own.rate(0), shared.rate(0)) == (pytest.approx(0.4), pytest.approx(0.8))


def test_only_what_is_known_is_scored() -> None:
    acceptance = Acceptance([0.5] * 4, weight=1, decay=1.0, fading=1.0)
    acceptance.score(range(3), [1, 2, 3], [1, 2])
    assert [acceptance.rate(i) for i in range(3)] == [0.75, 0.75, 0.5]


@pytest.mark.parametrize(("num_drafted", "uses_match"), [(4, False), (0, True)])
def test_chance_matches_do_not_keep_the_draft_model_from_being_asked(
    num_drafted: int, uses_match: bool
) -> None:
    """It has proposed nothing, as it was not asked; what it mostly gives is worth more than the match."""
    by_position, by_confidence, by_match = (_constant(rate) for rate in (0.8, 0.8, 0.02))
    draft = SequenceDraft(by_position, by_confidence, by_match)
    draft.match = Match(2, [1, 2, 3])
    sequence: Any = SimpleNamespace(stop_token_ids=())
    tokens, _ = draft.best(sequence, 8, num_drafted, sum, 1.1)
    assert (tokens, draft.uses_match) == ([1, 2, 3], uses_match)


@pytest.mark.parametrize(("chance_of_match", "uses_match"), [(0.52, False), (0.6, True)])
def test_a_match_is_taken_where_it_promises_clearly_more_than_the_draft_model(
    chance_of_match: float, uses_match: bool
) -> None:
    """The model's proposals, each right in half of the cases, know of the match already."""
    by_position, by_confidence, by_match = (_constant(rate) for rate in (0.5, 0.5, chance_of_match))
    draft = SequenceDraft(by_position, by_confidence, by_match)
    draft.match, draft.model_tokens, draft.confidences = Match(2, [1, 2]), (3, 4), [5, 5]
    sequence: Any = SimpleNamespace(stop_token_ids=())
    tokens, _ = draft.best(sequence, 8, 8, sum, 1.1)
    assert (tokens, draft.uses_match) == ([1, 2] if uses_match else [3, 4], uses_match)
