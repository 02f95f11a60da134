"""Predictions: what steps cost, how long answers get, and when a sequence starts and ends."""

from __future__ import annotations

import random
import statistics
from types import SimpleNamespace

import pytest

from flashlet.serving.engine import estimator as estimator_module
from flashlet.serving.engine import forecast as forecast_module
from flashlet.serving.engine.answer_lengths import AnswerLengths
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.estimator import _moments
from flashlet.serving.engine.forecast import Arrivals, Forecast, Job, Limits
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.step_times import StepLoad, StepTimes


def request(prompt: bytes, max_tokens: int = 8, **options: object) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, ignore_eos=True, **options)  # type: ignore[arg-type]


def step_ms(load: StepLoad) -> float:
    """A made-up machine: steps of few rows cost the same."""
    return max(5.0, load.rows) + 0.2 * load.samples + load.decode_reads / 1000 + load.prefill_reads / 20000


def test_step_times_are_learned() -> None:
    rng = random.Random(0)
    times = StepTimes()
    assert not times.known and times.rows_within(15) is None
    for _ in range(3000):
        decoding, prefill = rng.randint(0, 20), rng.choice([0, 0, 64, 200])
        load = StepLoad(
            decoding + prefill + 1,
            decoding + 1,
            decoding * rng.uniform(0, 1000),
            prefill * rng.uniform(0, 500),
        )
        times.observe(load, step_ms(load) * rng.lognormvariate(0, 0.1))
    for load in (
        StepLoad(1, 1, 100), StepLoad(8, 8, 4000), StepLoad(20, 20, 8000), StepLoad(72, 9, 3000, 10000)
    ):  # fmt: skip
        assert times.ms(load) == pytest.approx(step_ms(load), rel=0.15)
    assert times.rows_within(15) == pytest.approx(14, abs=3)


def test_what_was_never_seen_is_guessed_from_what_was() -> None:
    times = StepTimes()
    times.observe(StepLoad(8, 0), 10.0)
    assert times.ms(StepLoad(8)) == pytest.approx(10.0)
    assert 4.0 < times.ms(StepLoad(1)) < 7.0
    assert times.ms(StepLoad(64)) == pytest.approx(80.0)
    times.observe(StepLoad(64, 0), 40.0)
    assert times.ms(StepLoad(36)) == pytest.approx(25.0)


def test_a_slower_machine_is_noticed() -> None:
    times = StepTimes()
    times.seed([(1, 5.0), (2, 5.0), (4, 5.0), (8, 8.0)])
    for _ in range(60):
        times.observe(StepLoad(4, 4, 100), 15.0)
    assert times.ms(StepLoad(4, 4, 100)) == pytest.approx(15.0, rel=0.05)
    times.observe(StepLoad(4, 4, 100), 1000.0)  # once
    assert times.ms(StepLoad(4, 4, 100)) < 20.0


def test_speculation_counts_tokens_per_sequence() -> None:
    times = StepTimes()
    assert times.tokens(1) == 1.0
    for _ in range(200):
        times.observe_tokens(1, 3)
        times.observe_tokens(8, 8)
    assert times.tokens(1) == pytest.approx(3.0, rel=0.05) and times.tokens(8) == 1.0


def test_lengths_follow_what_ended_by_itself() -> None:
    lengths = AnswerLengths()
    assert lengths.expected(0, 100) == 100
    rng = random.Random(1)
    for _ in range(600):
        natural = int(rng.expovariate(1 / 50)) + 1
        lengths.ended(min(natural, 80), by_itself=natural <= 80)
    assert lengths.expected(0, 2000) == pytest.approx(50, rel=0.35)
    assert lengths.expected(0, 10) == pytest.approx(9, rel=0.1)
    assert lengths.expected(40, 60) == pytest.approx(16, rel=0.2)
    assert lengths.expected(10, 10) == 0


def test_answers_that_are_always_cut_have_no_end_of_their_own() -> None:
    lengths = AnswerLengths()
    for _ in range(50):
        lengths.ended(20, by_itself=False)
    assert lengths.expected(0, 500) == 500


def test_predictions_under_load(toy: SimpleNamespace, clock: SimpleNamespace) -> None:
    """Clients that ask again and again; the made-up machine takes its time for each step."""
    rng = random.Random(3)
    executor = toy.Executor(num_blocks=2048, context_length=400)
    engine: Engine = toy.engine(executor, max_sequences=8, max_step_tokens=64, prefill_chunk=16)
    estimator = engine._estimator
    learn = estimator.step_ended

    def step_ended(plan: object, load: StepLoad, num_tokens: int) -> None:
        clock.now += step_ms(load) / 1e3
        learn(plan, load, num_tokens)  # type: ignore[arg-type]

    estimator.step_ended = step_ended  # type: ignore[method-assign]
    errors: list[tuple[float, float]] = []
    arrived: dict[Sequence, float] = {}

    def arrive() -> None:
        prompt = bytes(rng.choices(b"abcdefgh", k=rng.choice([5, 40, 150])))
        sequence = engine.submit(request(prompt, rng.choice([4, 20, 60])))
        arrived[sequence] = clock.now

    first: dict[Sequence, float] = {}
    for _ in range(12):
        arrive()
    while len(errors) < 150:
        for sequence, _ in engine.step():
            first.setdefault(sequence, clock.now)
            estimate = sequence.estimate
            if sequence.is_finished:
                begin = arrived.pop(sequence)
                assert estimate is not None
                if estimate.ttft_ms is not None and estimate.total_ms is not None:
                    ttft, total = 1e3 * (first[sequence] - begin), 1e3 * (clock.now - begin)
                    errors.append((abs(estimate.ttft_ms / ttft - 1), abs(estimate.total_ms / total - 1)))
                arrive()
    assert statistics.median(error for error, _ in errors[30:]) < 0.15
    assert statistics.median(error for _, error in errors[30:]) < 0.2
    for sequence in arrived:
        engine.cancel(sequence)


def test_an_estimate_leaves_no_trace(toy: SimpleNamespace) -> None:
    engine: Engine = toy.engine(toy.Executor(block_size=4))
    prompt = b"abcdefghijkl"
    (unknown,) = engine.estimate([request(prompt, 5)])
    assert (unknown.prompt_tokens, unknown.cached_tokens, unknown.ttft_ms, unknown.total_ms) == (
        12,
        0,
        None,
        None,
    )
    toy.run(engine, [request(prompt, 5)])
    first, second = engine.estimate([request(prompt, 5), request(prompt, 5)])
    assert (first.cached_tokens, first.queue_position, first.output_tokens) == (8, 0, 5)
    assert second.queue_position == 1
    assert first.ttft_ms is not None and first.total_ms is not None
    assert 0 < first.ttft_ms < first.total_ms
    assert not engine.has_work


def test_who_matters_less_does_not_delay(toy: SimpleNamespace) -> None:
    engine: Engine = toy.engine(toy.Executor(num_blocks=400, context_length=400), max_step_tokens=64)
    toy.run(engine, [request(b"abc", 8)])
    (alone,) = engine.estimate([request(b"x" * 20, 4)])
    for i in range(8):
        engine.submit(request(bytes([97 + i]) * 300, 4, priority=9))
    (before, behind) = engine.estimate([request(b"x" * 20, 4), request(b"y" * 20, 4, priority=9)])
    assert (before.queue_position, behind.queue_position) == (0, 9)
    assert before.ttft_ms == pytest.approx(alone.ttft_ms)
    assert alone.ttft_ms is not None and behind.ttft_ms is not None
    assert behind.ttft_ms > 5 * alone.ttft_ms
    while engine.has_work:
        engine.step()


def test_a_long_queue_is_played_once_for_all_who_ask(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expectations() -> list[float]:
        engine: Engine = toy.engine(toy.Executor(num_blocks=4000, context_length=600), max_sequences=8)
        engine.scheduler.times.seed([(1, 5.0), (2, 5.0), (4, 5.0), (8, 8.0)])
        rng = random.Random(0)
        found: list[float] = []
        for _ in range(80):
            prompt = bytes(rng.choices(b"abcdefgh", k=rng.randint(10, 400)))
            estimate = engine.submit(request(prompt, rng.randint(4, 64))).estimate
            assert estimate is not None and estimate.ttft_ms is not None and estimate.total_ms is not None
            found += [estimate.ttft_ms, estimate.total_ms]
        for sequence in [*engine.scheduler.waiting]:
            engine.cancel(sequence)
        return found

    at_once = expectations()
    monkeypatch.setattr(estimator_module, "LONG_QUEUE", 1000)
    one_by_one = expectations()
    assert one_by_one[0] < one_by_one[-1] / 20
    assert at_once == pytest.approx(one_by_one, rel=0.08, abs=20.0)


def made_up_forecast(seed: int, num_waiting: int) -> Forecast:
    rng = random.Random(seed)
    times = StepTimes()
    times.seed([(1, 6.5), (2, 6.6), (4, 7.1), (8, 8.7), (16, 12.7), (32, 21.0)])
    limits = Limits(16, 512, 64, 16, 10**6)
    waiting = [Job(rng.randint(20, 300), rng.randint(8, 200), 0.0) for _ in range(num_waiting)]
    return Forecast(times, limits, [Job(0, 50, 100)], waiting, 0.0)


@pytest.mark.parametrize("num_waiting", [20, 49, 300])
def test_a_sample_stands_for_a_long_queue(monkeypatch: pytest.MonkeyPatch, num_waiting: int) -> None:
    sampled, played = ([made_up_forecast(seed, num_waiting) for seed in range(5)] for _ in range(2))
    for forecast in sampled:
        forecast.settle()
    monkeypatch.setattr(forecast_module, "SAMPLE", num_waiting)
    for forecast in played:
        forecast.settle()
    for one, other in zip(sampled, played, strict=True):
        assert one.now == pytest.approx(other.now, rel=0.15)
    assert sum(one.now for one in sampled) == pytest.approx(sum(one.now for one in played), rel=0.08)


def test_what_is_not_played_goes_on_as_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    def moments() -> tuple[float, float]:
        forecast = made_up_forecast(0, 10)
        own = Job(100, 1500, 0.0)
        return _moments(own, forecast, forecast.events(Arrivals(1.0, 150, 100), [own]))

    cut = moments()
    monkeypatch.setattr(forecast_module, "MAX_ROUNDS", 100_000)
    played = moments()
    assert cut[0] == played[0]
    assert cut[1] == pytest.approx(played[1], rel=0.1)
