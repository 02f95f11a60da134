"""How many proposals are worth a step."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest

from flashlet.kernels.cpu import Acceptance, best_rate, best_widths, could_pay
from flashlet.serving.engine.sequence_draft import Match, SequenceDraft


def test_free_rows_are_filled_and_dear_ones_are_not() -> None:
    stairs = [5.0 if count <= 3 else 5.0 + 2 * (count - 3) for count in range(100)]
    slope = [5.0 + count for count in range(100)]
    assert best_widths([[0.5, 0.3, 0.1, 0.05]], 1, stairs) == [3]
    assert best_widths([[0.99, 0.98, 0.97, 0.96, 0.95]], 1, slope) == [5]
    assert best_widths([[0.1, 0.05]], 1, slope) == [0]
    assert best_widths([[0.5, 0.4], [0.9, 0.1], []], 3, stairs) == [2, 1, 0]
    assert best_widths([[0.5, 0.4], [0.9, 0.1]], 2, stairs[:3]) == [1, 1]


def test_a_step_of_the_stairs_may_be_worth_climbing() -> None:
    """The first proposal alone does not pay, four together do."""
    assert best_widths([[0.9, 0.9, 0.9, 0.9]], 1, [1.0, 2.0, 2.0, 2.0, 2.0]) == [4]


def test_nothing_could_pay_where_proposals_cost_as_much_as_they_give() -> None:
    assert not could_pay(4, [4.0 + count for count in range(13)], 0.9)
    assert could_pay(4, [4.0 + 0.5 * count for count in range(13)], 0.9)
    assert could_pay(4, [4.0, 9.0, 9.0, 9.0, 4.5], 0.9)  # four proposals
    assert not could_pay(4, [4.0], 0.9)


def test_a_curve_promises_what_its_best_leading_part_gives() -> None:
    assert best_rate([0.5, 0.5, 0.1], 1, [5.0, 5.0, 5.0, 10.0]) == pytest.approx(2 / 5)
    assert best_rate([0.5, 0.5], 1, [5.0, 5.0]) == pytest.approx(1.5 / 5)  # no more are allowed
    assert best_rate([], 2, [5.0]) == pytest.approx(2 / 5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="prior"):
        Acceptance([], weight=1, decay=1.0, fading=1.0)
    acceptance = Acceptance([0.5], weight=1, decay=1.0, fading=1.0)
    for use in (lambda: acceptance.rate(-1), lambda: acceptance.record(-1, hit=True)):
        with pytest.raises(ValueError, match="index"):
            use()
    for use in (
        lambda: best_widths([[0.5]], 1, []),
        lambda: could_pay(1, [], 0.9),
        lambda: best_rate([], 1, []),
    ):
        with pytest.raises(ValueError, match="cost_ms"):
            use()


@pytest.mark.parametrize("seed", range(30))
def test_no_other_widths_are_better(seed: int) -> None:
    rng = random.Random(seed)
    curves = [sorted((rng.random() for _ in range(rng.randint(0, 4))), reverse=True) for _ in range(3)]
    costs = [sorted(rng.uniform(4, 9) for _ in range(13))[i] for i in range(13)]

    def rate(widths: tuple[int, ...] | list[int]) -> float:
        tokens = 3 + sum(sum(curve[:width]) for curve, width in zip(curves, widths, strict=True))
        return tokens / costs[sum(widths)]

    every = itertools.product(*(range(len(curve) + 1) for curve in curves))
    assert rate(best_widths(curves, 3, costs)) == pytest.approx(max(map(rate, every)))


def _constant(rate: float) -> Acceptance:
    return Acceptance([rate] * 9, weight=1, decay=1.0, fading=1.0)


def test_acceptance_follows_the_latest_trials_and_forgets_when_nothing_is_tried() -> None:
    acceptance = Acceptance([0.6, 0.5, 0.5], weight=3, decay=0.9, fading=0.9)
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
    shared = Acceptance([0.5, 0.5], weight=1, decay=1.0, fading=0.5)
    own, other = (Acceptance(shared, weight=1, decay=1.0, fading=0.5) for _ in range(2))
    other.record(0, hit=True)
    assert (own.rate(0), own.rate(1), shared.rate(0)) == (0.75, 0.5, 0.75)
    assert own.survival(range(2)) == [0.75, 0.375]
    shared.fade()
    assert own.rate(0) == pytest.approx(2 / 3)
    own.record(0, hit=False)
    shared.record(0, hit=True)
    # One hit that has faded by half, a miss, a hit; and the prior, imagined once.
    assert shared.rate(0) == pytest.approx((0.5 + 0 + 1 + 0.5) / (0.5 + 1 + 1 + 1))
    assert own.rate(0) == pytest.approx(shared.rate(0) / 2)


def test_only_what_is_known_is_scored() -> None:
    acceptance = Acceptance([0.5] * 4, weight=1, decay=1.0, fading=1.0)
    assert acceptance.score(range(3), [1, 2, 3], [1, 2]) == 2
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


def test_what_a_draft_model_left_out_counts_as_wrong() -> None:
    """It stopped, or was asked for more than it gave; what nobody judged counts for nothing."""
    for guesses, asked, tokens, expected in (
        ((1, 2), 4, (1, 2, 3), [0.75, 0.75, 0.25, 0.5]),
        ((1, 2), 4, (1, 2), [0.75, 0.75, 0.5, 0.5]),
        ((1, 2), 4, (1, 9), [0.75, 0.25, 0.5, 0.5]),
        ((1, 2), 2, (1, 2, 3), [0.75, 0.75, 0.5, 0.5]),
        ((), 2, (1,), [0.25, 0.5, 0.5, 0.5]),
        ((), 0, (1, 2), [0.5, 0.5, 0.5, 0.5]),
    ):
        acceptances = [Acceptance([0.5] * 4, weight=1, decay=1.0, fading=1.0) for _ in range(3)]
        others = Acceptance(acceptances[0], weight=1, decay=1.0, fading=1.0)  # believes what this one shows
        draft = SequenceDraft(*acceptances)
        draft.model_tokens, draft.num_asked = guesses, asked
        draft.confidences = [3 - i for i in range(len(guesses))]
        draft.learn(tokens)
        by_position, by_confidence, by_match = ([item.rate(i) for i in range(4)] for item in acceptances)
        assert by_position == expected == [others.rate(i) for i in range(4)]
        assert by_confidence[3] == (expected[0] if guesses else 0.5)
        assert by_match == [0.5] * 4


def test_matches_are_judged_by_their_length_whether_they_were_used_or_not() -> None:
    acceptances = [Acceptance([0.5] * 4, weight=1, decay=1.0, fading=1.0) for _ in range(3)]
    draft = SequenceDraft(*acceptances)
    draft.match = Match(2, [5, 6, 7])
    draft.learn([5, 6, 8])
    # Lengths from 3 on are one, as the longest: a hit, then a miss.
    assert [acceptances[2].rate(i) for i in range(4)] == [0.5, 0.5, 0.75, 0.5]
