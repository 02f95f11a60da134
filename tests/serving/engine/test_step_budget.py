"""How many prompt tokens and proposals come along with sequences that decode."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.plan import Plan
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.step_budget import STEP_MS, StepBudget, prompt_tokens
from flashlet.serving.engine.step_times import StepLoad, StepTimes

CHUNK = 64


def times_of(ms: Callable[[int], float]) -> StepTimes:
    """Times of steps of 12 sequences that decode, beside so many prompt tokens."""
    times = StepTimes()
    for tokens in [0, 8, 16, 32, 48, 64, 24, 40] * 20:
        times.observe(StepLoad(12 + tokens, 12), ms(12 + tokens))
    return times


def chunk(times: StepTimes, num_decoding: int = 12, reads: float = 0.0, context: int = 0) -> int:
    return prompt_tokens(times, CHUNK, num_decoding, reads, context)


def test_prompt_tokens_fill_what_a_step_may_take() -> None:
    assert chunk(times_of(lambda rows: 10 + rows)) == pytest.approx(STEP_MS - 10 - 12, abs=3)
    assert chunk(times_of(lambda rows: 10 + 0.5 * rows)) == pytest.approx(2 * (STEP_MS - 10) - 12, abs=4)
    assert chunk(times_of(lambda rows: 1 + 0.1 * rows)) == CHUNK


def test_prompts_get_on_beside_streams_however_long_steps_take() -> None:
    slow = times_of(lambda rows: 100 + 10 * rows)
    assert chunk(slow) == CHUNK // 4
    assert chunk(slow, num_decoding=30) == 30
    assert chunk(slow, num_decoding=100) == CHUNK
    assert prompt_tokens(slow, 1, 1, 0.0, 0) == 1


def test_a_chunk_is_modest_while_nothing_is_known() -> None:
    assert chunk(StepTimes()) == CHUNK // 4


def test_context_that_is_read_makes_chunks_smaller() -> None:
    times, rng = StepTimes(), random.Random(0)
    for _ in range(3000):
        tokens, context, reads = rng.choice((16, 32, 48)), rng.randrange(1500), rng.uniform(0, 4000)
        load = StepLoad(12 + tokens, 12, reads, tokens * (context + tokens / 2))
        times.observe(load, 10 + 0.5 * load.rows + load.prefill_reads / 5000 + load.decode_reads / 500)
    assert chunk(times, context=1400) < chunk(times, context=700) < chunk(times, context=0) - 5
    assert chunk(times, reads=3000) < chunk(times) - 3


def test_a_hiccup_does_not_make_chunks_tiny() -> None:
    times = times_of(lambda rows: 10 + 0.5 * rows)
    usual = chunk(times)
    times.observe(StepLoad(12 + usual, 12), 2000)
    assert chunk(times) > 0.7 * usual
    for _ in range(20):
        rows = 12 + chunk(times)
        times.observe(StepLoad(rows, 12), 10 + 0.5 * rows)
    assert chunk(times) == pytest.approx(usual, abs=3)


def test_a_hiccup_as_the_first_of_its_kind_is_not_believed_either() -> None:
    times = StepTimes()
    times.seed([(1, 10), (2, 10), (4, 11), (8, 13), (16, 17), (32, 24)])
    before = chunk(times)
    times.observe(StepLoad(12 + CHUNK, 12), 2000)
    assert chunk(times) > before / 2


def test_a_step_follows_the_budget_and_answers_stay_the_same(toy: SimpleNamespace) -> None:
    def run(ms: Callable[[int], float]) -> tuple[list[int], list[list[int]]]:
        executor = toy.Executor(num_blocks=64)
        engine = toy.engine(executor, prefill_chunk=CHUNK, max_step_tokens=100, max_sequences=8)
        engine.scheduler.budget._times = times_of(ms)  # not the ones that learn
        requests = [
            GenerationRequest(tuple(text), max_tokens=20, ignore_eos=True) for text in (b"a", b"b" * 90)
        ]
        stream = engine.submit(requests[0])
        engine.step()
        prompt = engine.submit(requests[1])
        chunks = []
        while engine.has_work:
            begun = prompt.num_computed
            engine.step()
            chunks.append(prompt.num_computed - begun)
        return chunks, [stream.tokens, prompt.tokens]

    quick, slow = run(lambda rows: 1.0), run(lambda rows: 100.0)
    assert quick[0][:2] == [64, 26]
    assert slow[0][:6] == [16, 16, 16, 16, 16, 10]
    assert quick[1] == slow[1]


def planned(toy: SimpleNamespace, *parts: tuple[int, int]) -> Plan:
    """A step of parts given by (tokens, prompt tokens) of each sequence."""
    plan = Plan()
    engine = toy.engine(toy.Executor())
    for count, num_prompt in parts:
        sequence = engine.create(GenerationRequest((97,) * num_prompt, max_tokens=4))
        sequence.num_computed = num_prompt - count
        plan.add(sequence, count)
    return plan


def test_proposals_are_few_where_others_wait_for_them(toy: SimpleNamespace) -> None:
    budget = StepBudget(EngineConfig(max_step_tokens=128, prefill_chunk=CHUNK), StepTimes())
    costs = StepCosts()
    streams = [(1, 2)] * 4
    assert budget.proposals(planned(toy, *streams), costs) == 124  # what they cost is not known yet
    for rows in (1, 100):
        costs.measured(rows, 10.0 + rows)
    assert budget.proposals(planned(toy, (1, 2)), costs) == 127
    assert budget.proposals(planned(toy, *streams), costs) == STEP_MS - 10 - 4
    assert budget.proposals(planned(toy, *streams, (12, 12)), costs) == 3
    quick, slow = StepCosts(), StepCosts()
    for rows in (1, 100):
        quick.measured(rows, 1.0 + rows / 100)
        slow.measured(rows, 96.0 + rows)
    assert budget.proposals(planned(toy, *streams), quick) == CHUNK
    assert budget.proposals(planned(toy, *streams), slow) == 50  # a step of 150 ms instead of 100
