"""The engine as a whole: answers that depend on nothing but the request, refusals, failures."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from flashlet.model.sampling import SamplingParams
from flashlet.model.step import Step
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
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
    executor = toy.Executor(num_blocks=rng.choice([18, 24, 40]), block_size=rng.choice([3, 4]))
    engine = toy.engine(
        executor,
        max_sequences=rng.choice([4, 16]),
        max_step_tokens=rng.choice([16, 40]),
        prefill_chunk=rng.choice([1, 5, 16]),
        enable_prefix_cache=seed % 5 != 0,
    )
    prefixes = [tuple(rng.choices(b"abcdefgh", k=n)) for n in (8, 13, 24)]
    requests = [toy.random_request(rng, prefixes, longest=engine.max_model_len) for _ in range(48)]
    answers = {engine.submit(r): toy.Answer() for r in requests}
    sequences = [*answers]
    cancelled = set()
    while engine.has_work:
        for sequence, event in engine.step():
            assert isinstance(event, TokenEvent) and sequence not in cancelled
            answers[sequence].events.append(event)
        if rng.random() < 0.05:
            victim = rng.choice(sequences)
            if not victim.is_finished:
                engine.cancel(victim)
                cancelled.add(victim)
        engine.check_integrity()
    assert engine.stats().preemptions > 0
    for sequence, answer in answers.items():
        expected = toy.run_alone(sequence.request, engine.max_model_len).visible()
        seen = answer.visible()
        assert seen == (expected[: len(seen)] if sequence in cancelled else expected)
    assert engine.stats().kv_usage == 0.0
