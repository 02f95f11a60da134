"""What steps cost, and whether speculation pays."""

from __future__ import annotations

import logging
import random
from typing import cast

import pytest

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.engine.drafting import Drafter
from flashlet.serving.engine.live_comparison import LiveComparison, Phase
from flashlet.serving.engine.plan import Part
from flashlet.serving.engine.sequence import Sequence


def costs_of(*points: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for rows, ms in points:
        costs.measured(rows, ms)
    return costs


def draft_ms(costs: StepCosts, num_tokens: int) -> float:
    """What drafting so many tokens adds to a step."""
    return costs.drafting(1, num_tokens)[-1] - costs.verifying(1, num_tokens)[-1]


def test_costs_lie_on_straight_lines_between_what_was_measured() -> None:
    costs = costs_of((1, 5.0), (8, 9.0), (4, 5.0), (4, 6.0))
    assert [costs.ms(rows) for rows in (1, 3, 4, 6, 8, 12)] == [5.0, 5.0, 5.0, 7.0, 9.0, 13.0]


def test_one_lucky_or_disturbed_measurement_changes_nothing() -> None:
    costs = costs_of((1, 5.0), (1, 3.0), (1, 5.2), (4, 6.0), (4, 6.2), (4, 19.0))
    for ms in (6.0, 6.1, 1.0):
        costs.measured_draft(1, ms)
    assert (costs.ms(1), costs.ms(4)) == (5.0, 6.2)
    assert draft_ms(costs, 1) == pytest.approx(1.0)


def test_costs_drift_with_the_median_of_live_steps() -> None:
    costs = costs_of((1, 5.0), (4, 6.0), (8, 9.0))
    usual = [costs.observe(1, 1, 0, ms) for ms in (10.0, 10.0, 90.0, 10.0, 10.0)]
    assert usual == pytest.approx([10.0] * 5, rel=0.02)
    # Everything is twice as slow now.
    assert (costs.ms(1), costs.ms(4)) == pytest.approx((10.0, 12.0), rel=0.02)
    costs.observe(1, 4, 0, 7.0)
    assert costs.ms(4) == pytest.approx(12.0, rel=0.03)  # one step does not say what three rows more cost
    for _ in range(StepCosts.STALE + 1):
        costs.observe(1, 4, 0, 6.0)
    assert (costs.ms(4), costs.plain_ms(1)) == pytest.approx((6.0, 5.0), rel=0.05)


def test_live_steps_correct_what_rows_cost() -> None:
    costs = costs_of((1, 5.0), (4, 5.2), (8, 5.4))
    rng = random.Random(1)
    for _ in range(500):  # a long context: each further row costs 0.4 ms, whatever the start said
        rows = rng.choice((1, 3, 4))
        costs.observe(1, rows, 0, (6.6 + 0.4 * rows) * rng.uniform(0.95, 1.05))
    assert [costs.ms(rows) for rows in (1, 3, 4)] == pytest.approx([7.0, 7.8, 8.2], rel=0.03)
    assert costs.ms(5) > 1.1 * costs.ms(1)  # was not seen, but what is beside it


@pytest.mark.parametrize("num_sequences", [1, 16])
def test_steps_of_one_kind_change_nothing_in_comparison(num_sequences: int) -> None:
    """However long nothing else is seen, and though disturbed steps are much slower than others are fast."""
    costs = costs_of((1, 4.0), (8, 6.0), (16, 12.0), (32, 24.0))
    before = [costs.ms(rows) for rows in range(1, 33)]
    rng = random.Random(2)
    for _ in range(30_000):
        hiccup = 1.5 if rng.random() < 0.05 else 1.0
        costs.observe(num_sequences, num_sequences, 0, hiccup * rng.lognormvariate(0, 0.06))
    scale = costs.ms(32) / before[-1]
    assert [costs.ms(rows) / scale for rows in range(1, 33)] == pytest.approx(before, rel=0.05)


def test_plain_steps_are_known_for_themselves() -> None:
    costs = costs_of((1, 5.0), (4, 6.0))
    costs.measured_draft(1, 5.5)
    costs.observe(1, 1, 0, 5.2)
    for _ in range(20):
        costs.observe(1, 4, 1, 13.0)
    assert costs.plain_ms(1) == 5.2
    assert costs.ms(1) == pytest.approx(10.0, rel=0.05)


def test_drafted_tokens_cost_what_remains_of_a_step() -> None:
    costs = costs_of((1, 5.0), (4, 5.0))
    assert not costs.drafts_known
    costs.measured_draft(1, 5.5)
    assert (draft_ms(costs, 1), draft_ms(costs, 3)) == pytest.approx((0.5, 1.5))
    costs.measured_draft(5, 6.3)  # further tokens are cheaper
    assert draft_ms(costs, 3) == pytest.approx(0.9)
    costs.observe(1, 4, 3, 11.8)  # twice as slow now
    assert draft_ms(costs, 3) == pytest.approx(1.8)


def test_nothing_is_said_before_enough_was_measured() -> None:
    costs = StepCosts()
    costs.measured_draft(1, 5.5)
    for _ in range(2):  # without any steps, and with those of one row
        for ask in (
            lambda: costs.ms(1),
            lambda: costs.verifying(1, 3),
            lambda: costs.drafting(1, 3),
            lambda: costs.observe(1, 1, 1, 5.0),
        ):
            with pytest.raises(RuntimeError, match="expected"):
                ask()
        costs.measured(1, 5.0)
    costs.measured(4, 6.0)
    assert costs.drafting(1, 1) == pytest.approx([5.0, 5.0 + 1 / 3 + 0.5])
    for rows in (0, -1):
        with pytest.raises(ValueError, match="rows"):
            costs.observe(1, rows, 0, 5.0)


def test_drafted_tokens_are_never_free() -> None:
    """A hiccup in the step without drafts does not make them so; the next measurement mends it."""
    costs = costs_of((1, 9.0), (4, 9.0))
    costs.measured_draft(1, 5.5)
    costs.measured_draft(8, 7.6)
    assert draft_ms(costs, 1) > 0.1 and draft_ms(costs, 3) > draft_ms(costs, 2) + 0.01
    costs.measured(1, 5.0)
    assert (draft_ms(costs, 1), draft_ms(costs, 8)) == pytest.approx((0.5, 2.6))


def run(comparison: LiveComparison, tokens: int, ms: float, steps: int) -> list[Phase]:
    """One sequence: plain steps take 5 ms, the others give `tokens` in `ms`."""
    phases = []
    for _ in range(steps):
        phases.append(comparison.phase)
        plain = phases[-1] in {Phase.PLAIN, Phase.OFF}
        comparison.step_done(1, 1 if plain else tokens, 5.0 if plain else ms, speculated=not plain)
    return phases


def test_a_few_steps_are_plain_and_the_gain_is_measured() -> None:
    comparison = LiveComparison(costs_of((1, 5.0), (4, 5.0)))
    assert comparison.speedup == 1.0
    phases = run(comparison, tokens=2, ms=6.0, steps=1000)
    assert comparison.speedup == pytest.approx(10 / 6)
    assert 0.005 < phases.count(Phase.PLAIN) / len(phases) < 0.02
    assert Phase.OFF not in phases
    assert phases[phases.index(Phase.PLAIN) - 1] is Phase.WIND_DOWN  # nothing is drafted in vain


def test_the_surer_the_gain_the_fewer_steps_are_plain() -> None:
    phases = {}
    for ms in (6.0, 7.0):  # 1.67 and 1.43 times as fast
        phases[ms] = run(LiveComparison(costs_of((1, 5.0), (4, 5.0))), tokens=2, ms=ms, steps=4000)
        assert phases[ms].count(Phase.PLAIN) >= 10  # the machine may change
    assert 2 * phases[6.0].count(Phase.PLAIN) < phases[7.0].count(Phase.PLAIN)


def test_a_machine_that_slows_down_is_soon_compared_with_itself() -> None:
    comparison = LiveComparison(costs_of((1, 5.0), (4, 5.0)))
    run(comparison, tokens=2, ms=6.0, steps=600)
    phases = run(comparison, tokens=2, ms=9.0, steps=200)  # in the middle of a long period
    assert Phase.PLAIN in phases and Phase.OFF not in phases


def test_what_does_not_pay_is_off_for_longer_and_longer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    comparison = LiveComparison(costs_of((1, 5.0), (4, 5.0)))
    phases = run(comparison, tokens=1, ms=6.0, steps=10_000)
    assert phases.count(Phase.OFF) > 0.95 * len(phases)
    assert comparison.speedup == pytest.approx(5 / 6)
    assert "0.83 times as fast" in caplog.text
    run(comparison, tokens=2, ms=6.0, steps=20_000)
    assert comparison.phase is not Phase.OFF  # it is tried again, and stays on once it pays


def test_hiccups_do_not_speak_against_speculation() -> None:
    """Every tenth step takes ten times as long, whatever it does; plain ones are too few to show that."""
    drafter = Drafter(costs_of((1, 5.0), (4, 6.0)), 0)
    nobody = cast("Sequence", None)
    plain = [Part(nobody, 1, samples=True, decodes=True)]
    proposing = [Part(nobody, 1, samples=True, decodes=True, proposed=[7, 7, 7])]
    for number in range(200):
        drafter.step_done(plain if number % 64 == 0 else proposing, 2, 60.0 if number % 10 == 1 else 6.0)
    assert drafter.comparison.phase is not Phase.OFF
    assert drafter.comparison.speedup > 1.5


def test_what_planning_asks_in_between_changes_no_costs() -> None:
    """Tables of costs are kept from step to step."""
    asked, silent = (costs_of((1, 4.0), (4, 4.4), (32, 20.0), (80, 50.0)) for _ in range(2))
    rng = random.Random(3)
    for costs in (asked, silent):
        costs.measured_draft(1, 4.6)
        costs.measured_draft(8, 5.6)
    for number in range(300):
        asked.verifying(rng.randint(1, 90), rng.randint(0, 20))
        asked.drafting(rng.randint(1, 90), rng.randint(0, 20))
        rows, drafted, ms = rng.choice((1, 4, 62, 63, 64, 80)), rng.randint(0, 4), rng.uniform(2.0, 90.0)
        for costs in (asked, silent):
            costs.observe(1, rows, drafted, ms)
            if number % 50 == 0:
                costs.measured(4, ms)
                costs.measured_draft(8, ms)
    every = range(1, 100)
    assert [asked.ms(rows) for rows in every] == [silent.ms(rows) for rows in every]
    assert asked.verifying(3, 80) == [silent.ms(3 + count) for count in range(81)]
    assert asked.drafting(3, 12) == pytest.approx(
        [silent.ms(3 + count) + draft_ms(silent, count) for count in range(13)]
    )
