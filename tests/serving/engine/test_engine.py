"""The engine as a whole: answers that depend on nothing but the request, refusals, failures."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from flashlet.model.errors import FlashletError
from flashlet.model.sampling import SamplingParams
from flashlet.model.step import Step
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.errors import (
    ContextLengthError,
    EngineFailedError,
    InvalidRequestError,
    QueueFullError,
)


def request(prompt: bytes = b"hello", max_tokens: int | None = 8, **options: object) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, ignore_eos=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_answers_do_not_depend_on_company(toy: SimpleNamespace, seed: int) -> None:
    rng = random.Random(seed)
    engine = toy.engine(
        toy.Executor(num_blocks=rng.choice([18, 24, 40]), block_size=rng.choice([3, 4]), context_length=72),
        max_sequences=rng.choice([4, 16]),
        max_step_tokens=rng.choice([16, 40]),
        prefill_chunk=rng.choice([1, 5, 16]),
        enable_prefix_cache=seed % 5 != 0,
    )
    assert toy.storm(engine, rng)
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_hits > 0 or not engine.config.enable_prefix_cache


def test_one_event_per_token_and_one_end(toy: SimpleNamespace) -> None:
    (answer,) = toy.run(toy.engine(), [request(max_tokens=5)])
    assert [event.num_output_tokens for event in answer.events] == [1, 2, 3, 4, 5]
    assert [event.finish_reason for event in answer.events] == [None] * 4 + ["length"]
    assert answer.text == bytes(answer.tokens).decode(errors="replace")


def test_eos_counts_as_a_token_without_text(toy: SimpleNamespace) -> None:
    requests = [
        GenerationRequest(tuple(b"hello"), SamplingParams(seed=seed), max_tokens=100) for seed in range(20)
    ]
    for answer in toy.run(toy.engine(), requests):
        if answer.finish_reason == "stop":
            assert answer.tokens[-1] == toy.EOS
            assert answer.events[-1].num_output_tokens == len(answer.tokens)
            assert answer.text == bytes(answer.tokens[:-1]).decode(errors="replace")
            break
    else:
        pytest.fail("no answer ended by itself")


def test_unlimited_answers_fill_the_context_or_the_pool(toy: SimpleNamespace) -> None:
    for executor, limit in ((toy.Executor(64, 4, 40), 40), (toy.Executor(5, 4, 40), 20)):
        engine = toy.engine(executor)
        (answer,) = toy.run(engine, [request(b"hello", None)])
        assert (len(answer.tokens), answer.finish_reason) == (limit - 5, "length")
        assert engine.max_model_len == limit


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request(b""), "prompt"),
        (GenerationRequest((97, 257)), "prompt"),
        (GenerationRequest((-1,)), "prompt"),
        (request(max_tokens=-1), "max_tokens"),
        (request(max_tokens=3, min_tokens=4), "min_tokens"),
        (request(min_tokens=-1), "min_tokens"),
        (request(stop=("a", "")), "stop"),
        (request(stop_token_ids=(300,)), "stop_token_ids"),
        (request(sampling=SamplingParams(logit_bias=((257, 1.0),))), "logit_bias"),
    ],
)
def test_bad_requests_name_their_parameter(toy: SimpleNamespace, bad: GenerationRequest, param: str) -> None:
    engine = toy.engine()
    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(bad)
    assert caught.value.param == param
    assert not engine.has_work


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "param"), [(20, None, "prompt"), (21, 0, "prompt"), (12, 9, "max_tokens")]
)
def test_what_never_fits_is_refused_with_length_and_limit(
    toy: SimpleNamespace, num_prompt: int, max_tokens: int | None, param: str
) -> None:
    engine = toy.engine(toy.Executor(num_blocks=5, block_size=4))
    with pytest.raises(ContextLengthError, match=f"20 tokens; the prompt has {num_prompt}") as caught:
        engine.submit(request(b"a" * num_prompt, max_tokens))
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(19, None), (20, 0), (12, 8), (1, 19)])
def test_what_just_fits_is_served(toy: SimpleNamespace, num_prompt: int, max_tokens: int | None) -> None:
    engine = toy.engine(toy.Executor(num_blocks=5, block_size=4))
    (answer,) = toy.run(engine, [request(b"a" * num_prompt, max_tokens)])
    assert len(answer.tokens) == (20 - num_prompt if max_tokens is None else max_tokens)


def test_a_full_queue_refuses_with_an_estimate(toy: SimpleNamespace) -> None:
    engine = toy.engine(max_sequences=2, max_waiting=3)
    sequences = [engine.submit(request()) for _ in range(5)]
    with pytest.raises(QueueFullError, match="limit is 5") as caught:
        engine.submit(request())
    assert 1.0 <= caught.value.retry_after <= 60.0
    engine.cancel(sequences[3])
    engine.submit(request())
    while engine.has_work:
        engine.step()


def test_cancelling_frees_at_once_and_twice_is_harmless(toy: SimpleNamespace) -> None:
    engine = toy.engine(max_sequences=1)
    running, waiting = engine.submit(request()), engine.submit(request(b"other"))
    engine.step()
    assert engine.stats().kv_usage > 0
    for sequence in (running, waiting, running, waiting):
        engine.cancel(sequence)
    assert not engine.has_work and engine.step() == []
    assert engine.stats().kv_usage == 0.0


def test_a_failed_step_ends_what_runs_and_the_engine_goes_on(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, max_sequences=2)

    def fail_once(step: Step) -> None:
        executor.before_step = lambda step: None
        raise RuntimeError("out of luck")

    toy.run(engine, [request(b"hello there")])  # leaves blocks in the prefix cache
    executor.before_step = fail_once
    answers = toy.run(engine, [request(b"hello there"), request(b"two"), request(b"three")])
    assert [type(answer.error) for answer in answers] == [EngineFailedError, EngineFailedError, type(None)]
    assert answers[2].tokens == toy.run_alone(request(b"three"), 128).tokens
    assert engine.healthy
    (again,) = toy.run(engine, [request(b"hello there")])
    assert again.events[0].num_cached_tokens == 0  # what the pool held is not trusted any more


def test_a_failure_of_the_scheduler_loses_nobody(toy: SimpleNamespace) -> None:
    engine = toy.engine()
    blocks = engine.scheduler.blocks
    allocate = blocks.allocate

    def fail_once(*arguments: object) -> None:
        blocks.allocate = allocate
        raise RuntimeError("out of luck")

    blocks.allocate = fail_once
    (answer,) = toy.run(engine, [request()])
    assert answer.finish_reason == "length" or isinstance(answer.error, EngineFailedError)


def test_three_failures_in_a_row_end_everything(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, max_sequences=1)

    def fail(step: Step) -> None:
        raise RuntimeError("broken")

    executor.before_step = fail
    answers = toy.run(engine, [request() for _ in range(5)])
    assert all(isinstance(answer.error, EngineFailedError) for answer in answers)
    assert len(executor.steps) == 3 and not engine.healthy
    with pytest.raises(EngineFailedError):
        engine.submit(request())


def test_an_executor_that_breaks_its_contract_is_a_failure(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    good = executor.execute
    executor.execute = lambda step: good(step)[:-1]
    (ended, lost) = toy.run(toy.engine(executor), [request(max_tokens=1), request(b"other")])
    # The first had its last token in the step that failed: its client must hear of an end, too.
    assert isinstance(ended.error, EngineFailedError) and isinstance(lost.error, EngineFailedError)


def test_times_follow_the_life_of_a_sequence(toy: SimpleNamespace) -> None:
    engine = toy.engine()
    sequence = engine.submit(request(max_tokens=3))
    assert sequence.times.first_scheduled is None
    while engine.has_work:
        engine.step()
    times = sequence.times
    assert times.arrival <= times.first_scheduled <= times.first_token < times.last_token


@pytest.mark.parametrize(
    "options",
    [
        {"max_waiting": 0}, {"max_sequences": 0}, {"prefill_chunk": 0}, {"max_step_tokens": 0},
        {"max_step_tokens": 63, "max_sequences": 64},
    ],
)  # fmt: skip
def test_config_refuses_limits_without_progress(options: dict[str, int]) -> None:
    with pytest.raises(FlashletError, match=next(iter(options))):
        EngineConfig(**options)
