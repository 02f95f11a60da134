"""Proposals change how soon tokens come, never which."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from flashlet.model.sampling import SamplingParams
from flashlet.serving.engine import drafting
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.sequence import Sequence as EngineSequence
from flashlet.serving.engine.sequence_draft import SequenceDraft

ROUNDS = 24
Speculating = Callable[..., Engine]


def request(prompt: bytes = b"hello", max_tokens: int | None = 40, **options: object) -> GenerationRequest:
    options = {"ignore_eos": True, **options}
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_events_are_those_without_proposals(
    toy: SimpleNamespace, speculating: Speculating, seed: int
) -> None:
    rng = random.Random(f"speculation {seed}")
    executor = toy.Executor(
        num_blocks=rng.choice([18, 24, 40]),
        block_size=rng.choice([3, 4]),
        context_length=72,
        max_draft_tokens=rng.choice([0, 1, 3, 5]),
        accuracy=rng.choice([0.0, 0.6, 0.9, 1.0]),
    )
    engine = toy.engine(
        executor,
        draft=rng.choice(["auto", "auto", "ngram"]),
        max_sequences=rng.choice([1, 4, 16]),
        max_step_tokens=rng.choice([16, 40]),
        prefill_chunk=rng.choice([1, 5, 16]),
        enable_prefix_cache=seed % 5 != 0,
    )
    speculating(engine, rng if seed % 2 else None)
    toy.storm(engine, rng)
    assert engine.stats().draft_tokens > 0


def test_a_perfect_draft_saves_steps_and_every_token_has_an_event(
    toy: SimpleNamespace, speculating: Speculating
) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=1.0)
    engine = speculating(toy.engine(executor, draft="auto"))
    executor.steps.clear()
    (answer,) = toy.run(engine, [request(b"hello", 61)])
    assert answer.visible() == toy.run_alone(request(b"hello", 61), 128).visible()
    assert [event.num_output_tokens for event in answer.events] == [*range(1, 62)]
    assert len(executor.steps) < 30
    stats, last = engine.stats(), answer.events[-1]
    assert last.num_rejected == stats.draft_tokens - stats.accepted_tokens
    assert 61 - len(executor.steps) == stats.accepted_tokens == last.num_accepted
    assert stats.accepted_per_position[0] == stats.drafts >= stats.accepted_per_position[1]


def test_a_useless_draft_is_asked_no_longer(toy: SimpleNamespace, speculating: Speculating) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=0.0)
    engine = speculating(toy.engine(executor, draft="auto"), draft_ms=0.1)
    executor.steps.clear()
    toy.run(engine, [request(b"hello", 100)])
    asked = [bool(step.slices[0].draft and step.slices[0].draft.num_tokens) for step in executor.steps]
    assert any(asked[:5]) and sum(asked) < 30
    assert any(step.slices[0].draft is None for step in executor.steps)


def test_what_pays_for_none_of_many_is_looked_for_less_often(
    toy: SimpleNamespace, speculating: Speculating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning in vain takes time of every step; what has begun to pay is found all the same."""
    executor = toy.Executor(num_blocks=600, context_length=240)
    engine = speculating(toy.engine(executor, draft="ngram", max_sequences=8, max_step_tokens=200))
    row_ms, looks = [1e6], [0]
    monkeypatch.setattr(engine.scheduler.drafter.costs, "ms", lambda rows: 1e6 + row_ms[0] * (rows - 1))
    look_up = SequenceDraft.look_up

    def counted(draft: SequenceDraft, sequence: EngineSequence, count: int) -> None:
        looks[0] += 1
        look_up(draft, sequence, count)

    monkeypatch.setattr(SequenceDraft, "look_up", counted)
    monkeypatch.setattr(drafting, "NEARLY_SURE", 9.0)  # or it would not even be looked for
    for number in range(8):
        engine.submit(request(bytes([97 + number, 98, 99] * 4), 200))
    for _ in range(100):
        engine.step()
    assert 8 * 30 < looks[0] < 8 * 45 and engine.stats().draft_tokens == 0
    row_ms[0] = 0.0
    while engine.has_work:
        engine.step()
    assert engine.stats().accepted_tokens > 0


def test_whoever_comes_to_many_is_followed_from_the_start(
    toy: SimpleNamespace, speculating: Speculating
) -> None:
    """Also where nothing pays for those that are there."""
    for wait in range(20, 26):
        executor = toy.Executor(num_blocks=600, max_draft_tokens=3, accuracy=0.0)
        engine = speculating(toy.engine(executor, draft="auto", max_sequences=9, max_step_tokens=200))
        for number in range(8):
            engine.submit(request(bytes([97 + number]), 100, draft="none"))
        for _ in range(wait):
            engine.step()
        executor.steps.clear()
        engine.submit(request(b"hello", 20))
        engine.step()
        (newcomer,) = (piece for piece in executor.steps[0].slices if len(piece.token_ids) > 1)
        assert newcomer.draft is not None and newcomer.draft.start == 0


def test_requests_may_come_while_costs_are_measured(toy: SimpleNamespace) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=1.0)
    engine = toy.engine(executor, draft="auto")
    (answer,) = toy.run(engine, [request(b"hello", 40)])
    assert answer.visible() == toy.run_alone(request(b"hello", 40), 128).visible()


def test_a_run_is_cut_at_the_end_of_the_sequence(toy: SimpleNamespace, speculating: Speculating) -> None:
    """Stop strings, stop tokens and limits in the middle of accepted proposals."""
    for options in ({"stop": ("a",)}, {"stop_token_ids": (98,)}, {"ignore_eos": False}):
        for length in range(1, 24):
            executor = toy.Executor(max_draft_tokens=5, accuracy=1.0)
            engine = speculating(toy.engine(executor, draft="auto"))
            wanted = request(bytes([97 + length]), length, **options)
            (answer,) = toy.run(engine, [wanted])
            assert answer.visible() == toy.run_alone(wanted, 128).visible()
            assert engine.stats().generation_tokens == len(answer.tokens) <= length


def test_proposals_never_preempt(toy: SimpleNamespace, speculating: Speculating) -> None:
    """Two sequences fill the pool exactly."""
    executor = toy.Executor(num_blocks=16, max_draft_tokens=7, accuracy=0.5)
    engine = speculating(toy.engine(executor, draft="auto", enable_prefix_cache=False))
    toy.run(engine, [request(b"abcd", 28), request(b"efgh", 28)])
    assert engine.stats().preemptions == 0


def test_few_proposals_come_along_with_a_prompt(toy: SimpleNamespace, speculating: Speculating) -> None:
    """Everybody waits for such a step: a quarter of a chunk is the most that may lengthen it."""
    executor = toy.Executor(max_draft_tokens=7, accuracy=1.0)
    engine = speculating(toy.engine(executor, draft="auto", prefill_chunk=8, max_step_tokens=64))
    for start in (b"abcd", b"efgh", b"ijkl"):
        engine.submit(request(start, 90))
    for _ in range(6):
        engine.step()
    engine.submit(request(bytes(range(60, 120)), 2))
    executor.steps.clear()
    for _ in range(6):
        engine.step()
    beside = [sum(len(piece.proposed) for piece in step.slices) for step in executor.steps]
    assert all(any(len(piece.token_ids) > 1 for piece in step.slices) for step in executor.steps)
    assert max(beside) == 2


def test_requests_choose_who_drafts(toy: SimpleNamespace, speculating: Speculating) -> None:
    for chosen in ("none", "ngram", "auto"):
        executor = toy.Executor(max_draft_tokens=3, accuracy=1.0)
        engine = speculating(toy.engine(executor, draft="auto"))
        executor.steps.clear()
        toy.run(engine, [request(b"abcabcabcabc", 60, draft=chosen)])
        pieces = [step.slices[0] for step in executor.steps]
        assert any(piece.proposed for piece in pieces) == (chosen != "none")
        assert any(piece.draft for piece in pieces) == (chosen == "auto")


def test_history_and_min_tokens_hold_at_every_position(
    toy: SimpleNamespace, speculating: Speculating
) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=1.0)
    engine = speculating(toy.engine(executor, draft="auto"))
    executor.steps.clear()
    sampling = SamplingParams(frequency_penalty=0.5)
    wanted = request(b"abc", 9, sampling=sampling, min_tokens=4, stop_token_ids=(5,), ignore_eos=False)
    (answer,) = toy.run(engine, [wanted])
    for step in executor.steps:
        for i, sample in enumerate(step.slices[0].samples):
            count = sample.position - 3
            assert (sample.suppressed != ()) == (count < 4)
            assert len(sample.output) == count
            proposed = step.slices[0].proposed[:i]
            assert [*sample.output[count - i :]] == [*proposed]
    assert answer.visible() == toy.run_alone(wanted, 128).visible()


class Alternating:
    """A grammar, and its own constraint: a letter up to d, then one after d, and so on."""

    def __init__(self) -> None:
        self._count = 0

    def constraint(self, *_: object) -> Alternating:
        return Alternating()

    def masks(self, proposed: Sequence[int]) -> list[NDArray[np.uint32] | None]:
        masks: list[NDArray[np.uint32] | None] = []
        for i, token_id in enumerate([*proposed, -1]):
            allowed = [*(b"efgh" if (self._count + i) % 2 else b"abcd")]
            masks.append(np.zeros(9, np.uint32))
            for byte in allowed:
                masks[-1][byte // 32] |= 1 << byte % 32
            if token_id not in allowed:
                break
        return masks

    def push(self, token_id: int) -> None:
        assert token_id in (b"efgh" if self._count % 2 else b"abcd")
        self._count += 1


@pytest.mark.parametrize("accuracy", [0.5, 1.0])
def test_masks_cut_proposals(toy: SimpleNamespace, speculating: Speculating, accuracy: float) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=accuracy)
    engine = speculating(toy.engine(executor, draft="auto"))
    requests = [request(bytes([97 + i]) * 5, 60, grammar=Alternating()) for i in range(4)]
    answers = toy.run(engine, requests)
    for wanted, answer in zip(requests, answers, strict=True):
        assert answer.visible() == toy.run_alone(wanted, 128).visible()
    assert engine.stats().accepted_tokens > 0


def test_what_steps_cost_is_measured_further_only_while_nobody_waits(toy: SimpleNamespace) -> None:
    executor = toy.Executor(max_draft_tokens=3, accuracy=0.5)
    engine = toy.engine(executor, draft="auto")

    def measured() -> int:
        """Calls of the executor in the next step, beyond the one for a sequence that decodes."""
        while not engine.scheduler.running or engine.scheduler.has_prompts:
            if not engine.has_work:
                engine.submit(request(b"hello", 100))
            engine.step()
        before = len(executor.steps)
        engine.step()
        return len(executor.steps) - before - 1

    counts = [measured() for _ in range(400)]
    assert counts[0] == 1
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
    assert engine.is_calibrating
    idle = 0
    while engine.is_calibrating:
        idle += not engine.has_work
        engine.step()
    assert idle > 10
