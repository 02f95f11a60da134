"""Sequences that matter less make room for the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flashlet.model.step import Step
from flashlet.serving.engine import step_budget
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.step_times import StepTimes

LATER = 2**31 - 1  # of batches


def request(prompt: bytes, max_tokens: int = 8, priority: int = 0) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, ignore_eos=True, priority=priority)


def last_widths(executor: SimpleNamespace) -> list[int]:
    """Tokens per slice of the latest step."""
    return [len(piece.token_ids) for piece in executor.steps[-1].slices]


def known_times(engine: Engine, *points: tuple[int, float]) -> Engine:
    """Let the scheduler believe in these milliseconds of steps by their rows, whatever it sees."""
    times = engine.scheduler.budget._times = StepTimes()  # not the ones that learn
    times.seed(points or [(1, 1.0), (8, 5.0), (32, 29.0)])
    return engine


def end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.check_integrity()


@pytest.mark.parametrize("priority", [1, LATER])
def test_others_sit_out_while_a_prompt_is_computed(toy: SimpleNamespace, priority: int) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, prefill_chunk=4, max_step_tokens=32, max_sequences=8)
    batch = [engine.submit(request(bytes([97 + i]) * 3, 30, priority)) for i in range(3)]
    engine.step()
    live = engine.submit(request(b"x" * 40, 2))
    assert {sequence for sequence, _ in engine.step()} == set()
    assert last_widths(executor) == [32]  # a whole step instead of a chunk
    assert {sequence for sequence, _ in engine.step()} == {live}
    assert last_widths(executor) == [8]
    assert {sequence for sequence, _ in engine.step()} == {live, *batch}
    end(engine)
    assert [sequence.num_output_tokens for sequence in batch] == [30] * 3


def test_equal_priorities_share_steps_whatever_the_number(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, prefill_chunk=4, max_step_tokens=32, max_sequences=8)
    first = engine.submit(request(b"abc", 30, -5))
    engine.step()
    engine.submit(request(b"x" * 40, 2, -5))
    assert {sequence for sequence, _ in engine.step()} == {first}
    assert last_widths(executor) == [1, 4]
    end(engine)


def test_prompts_that_matter_less_come_in_short_steps(toy: SimpleNamespace, clock: SimpleNamespace) -> None:
    executor = toy.Executor(context_length=256)
    engine = toy.engine(executor, max_step_tokens=128)
    engine.submit(request(b"a" * 40, 2, 1))
    engine.step()
    assert last_widths(executor) == [16]  # nothing is known of how long steps take
    end(engine)
    engine = known_times(toy.engine(executor, max_step_tokens=128))
    engine.submit(request(b"b" * 40, 2, 1))
    engine.step()
    assert last_widths(executor) == [23]  # 20 ms
    engine.submit(request(b"live", 1))
    engine.step()
    engine.step()
    assert last_widths(executor) == [13]  # 10 ms: the next one may come at any moment
    end(engine)


def test_so_many_decode_as_a_short_step_allows(toy: SimpleNamespace, clock: SimpleNamespace) -> None:
    executor = toy.Executor(num_blocks=1000)
    engine = toy.engine(executor)
    for i in range(30):
        engine.submit(request(bytes([97 + i]), 60, LATER))
    engine.step()  # before anything is known
    while len(engine.scheduler.running) < 30:
        engine.step()
    known_times(engine)
    engine.step()
    assert last_widths(executor) == [1] * 23
    live = engine.submit(request(b"live", 3))
    engine.step()
    assert last_widths(executor) == [4]
    engine.step()
    assert last_widths(executor) == [1] * 13 and not live.is_finished
    engine.step()
    assert live.is_finished
    clock.now += 9.0
    engine.step()
    assert last_widths(executor) == [1] * 13
    clock.now += 2.0
    engine.step()
    assert last_widths(executor) == [1] * 23
    known_times(engine, (1, 50.0), (8, 76.0), (32, 200.0))  # one more row than without them, at 1.5 times
    engine.submit(request(b"live", 3))
    engine.step()
    engine.step()
    assert len(last_widths(executor)) == 7
    known_times(engine, (1, 50.0), (2, 500.0), (4, 5000.0))
    engine.step()
    assert len(last_widths(executor)) == 2  # somebody always gets on
    end(engine)


def test_a_batch_hardly_delays_first_tokens(toy: SimpleNamespace, clock: SimpleNamespace) -> None:
    """On a made-up machine, where a row costs as much as on two cores; arrivals come at any moment."""
    rng = random.Random(0)

    def work(step: Step) -> None:
        rows = sum(len(piece.token_ids) for piece in step.slices)
        reads = sum(piece.start for piece in step.slices)
        clock.now += (max(6.5, 0.66 * rows) + reads / 1500) * rng.lognormvariate(0, 0.05) / 1e3

    def first_tokens(num_lines: int) -> list[float]:
        """Milliseconds to the first tokens of live requests, in order of length."""
        executor = toy.Executor(num_blocks=1000, context_length=200)
        executor.before_step = work
        engine = toy.engine(executor)
        times: list[float] = []
        arrival, live, ended = clock.now + 1.0, None, 0
        while len(times) < 40:
            present = len(engine.scheduler.running) + len(engine.scheduler.waiting) - (live is not None)
            for _ in range(num_lines - present):
                engine.submit(request(bytes(rng.choices(b"abcdefgh", k=60)), 40, LATER))
            if live is None and clock.now >= arrival:
                live = engine.submit(request(bytes(rng.choices(b"abcdefgh", k=30)), 4))
            if not engine.has_work:
                clock.now = arrival
            events = engine.step()
            ended += sum(sequence is not live and sequence.is_finished for sequence, _ in events)
            if live is not None and live.num_output_tokens == 1:
                times.append(1e3 * (clock.now - arrival))
            if live is not None and live.is_finished:
                live, arrival = None, clock.now + rng.uniform(0.05, 0.3)
        for sequence in [*engine.scheduler.running, *engine.scheduler.waiting]:
            engine.cancel(sequence)
        assert not num_lines or ended > 20  # lines get on
        return sorted(times)

    alone, beside = first_tokens(0), first_tokens(16)
    assert beside[20] < 1.35 * alone[20]
    assert beside[36] < 1.5 * alone[36]


def test_decodes_do_not_stop_the_prompts_of_their_kind(toy: SimpleNamespace, clock: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, max_step_tokens=64, max_sequences=32)
    for i in range(20):
        engine.submit(request(bytes([97 + i]), 60, LATER))
    while len(engine.scheduler.running) < 20:
        engine.step()
    known_times(engine)
    late = engine.submit(request(b"late but long", 1, LATER))
    for _ in range(3):
        engine.step()
        assert last_widths(executor) == [1] * 19 + [4]
    engine.step()
    assert late.is_finished
    end(engine)


def test_an_arrival_takes_places_and_blocks(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(num_blocks=12), max_sequences=2)
    batch = [engine.submit(request(prompt, 6, LATER)) for prompt in (b"abcdefgh", b"ijklmnop")]
    engine.step()
    assert all(sequence.num_output_tokens for sequence in batch)
    small, big = engine.submit(request(b"x", 4)), engine.submit(request(b"y" * 36, 4))
    assert {sequence for sequence, _ in engine.step()} >= {small}
    engine.check_integrity()
    assert [*engine.scheduler.running] == [small, big] and engine.stats().preemptions == 2
    end(engine)
    assert [sequence.num_output_tokens for sequence in (*batch, small, big)] == [6, 6, 4, 4]


def test_nobody_gives_way_to_an_equal(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(), max_sequences=1)
    first = engine.submit(request(b"abc", 5, 3))
    engine.step()
    engine.submit(request(b"def", 5, 3))
    engine.step()
    assert [*engine.scheduler.running] == [first]
    end(engine)
    assert engine.stats().preemptions == 0


def test_a_prefix_is_not_awaited_from_who_sits_out(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor())
    prompt = b"abcdefgh" * 4
    batch = engine.submit(request(prompt + b"x", 2, LATER))
    engine.step()
    assert 0 < batch.num_computed < len(prompt)
    live = engine.submit(request(prompt + b"y", 2))
    assert {sequence for sequence, _ in engine.step()} == {live}
    end(engine)
    assert batch.num_output_tokens == 2


def test_only_the_first_priority_brings_proposals(
    toy: SimpleNamespace, speculating: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=0.9)
    engine = speculating(toy.engine(executor, draft="auto"))
    live = engine.submit(request(b"live", 40))
    batch = engine.submit(request(b"later", 60, LATER))
    proposed: dict[Sequence, int] = {live: 0, batch: 0}
    while not live.is_finished:
        engine.step()
        for piece in executor.steps[-1].slices:
            proposed[live if piece.block_table == tuple(live.block_table) else batch] += len(piece.proposed)
    assert batch.num_output_tokens > 1 and live.num_accepted > 0
    engine.step()
    assert batch.num_accepted == batch.num_rejected == 0  # somebody else may come
    monkeypatch.setattr(step_budget, "REST", 0.0)
    end(engine)
    assert batch.num_accepted > 0  # alone, it may


@pytest.mark.parametrize("seed", range(6))
def test_answers_do_not_depend_on_priorities(toy: SimpleNamespace, seed: int) -> None:
    rng = random.Random(seed)
    engine = toy.engine(
        toy.Executor(num_blocks=rng.choice([18, 30]), context_length=72),
        max_sequences=rng.choice([3, 8]),
        max_step_tokens=rng.choice([16, 40]),
        prefill_chunk=rng.choice([1, 5, 16]),
    )
    prefixes = [tuple(rng.choices(b"abcdefgh", k=n)) for n in (8, 13, 24)]
    todo = [
        replace(
            toy.random_request(rng, prefixes, engine.max_model_len), priority=rng.choice([0, 0, 1, LATER])
        )
        for _ in range(36)
    ]
    answers = {}
    while engine.has_work or todo:
        for sequence, event in engine.step():
            assert isinstance(event, TokenEvent)
            answers[sequence].events.append(event)
        if todo and (not answers or rng.random() < 0.3):
            answers[engine.submit(todo.pop())] = toy.Answer()
        engine.check_integrity()
    assert engine.stats().preemptions > 0
    for sequence, answer in answers.items():
        expected = toy.run_alone(sequence.request, engine.max_model_len).visible()
        assert answer.visible() == expected
