"""Contract 1: what a sequence gets depends on its own prompt, parameters and seed, and on nothing else.

Each round submits 48 requests to a pool with few blocks, cancels some, and compares every event with what the
same request got alone, without speculation.
"""

from __future__ import annotations

import random
from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest

from flashlet.model.executor import Executor, ExecutorOptions, create_executor
from flashlet.model.sampling import SamplingParams
from flashlet.model.step import SequenceSlice, SliceOutput, Step
from flashlet.model.tokenizer import Tokenizer, load_tokenizer
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.sequence import Sequence, SequenceStatus
from flashlet.serving.memory import kv_bytes_per_token

ROUNDS = 20
DRAFT_TOKENS = 5
DRAFT_ACCURACY = 0.8
REQUESTS = 48
LONG = 6  # so many of them grow from one block to three or four: more than was free when they started
BLOCK = 32
POOL_BLOCKS = 8
BACKENDS = ["native", "torch"]


@dataclass(frozen=True)
class Setup:
    """An executor with a small pool, the requests that rounds draw from, and what each got alone."""

    executor: Executor
    tokenizer: Tokenizer
    requests: list[GenerationRequest]
    alone: list[list[TokenEvent]]
    preemptions: dict[int, int] = field(default_factory=dict)  # by round
    prefix_hits: dict[int, int] = field(default_factory=dict)  # likewise, in tokens
    accepted: dict[int, int] = field(default_factory=dict)  # proposed tokens that were right, likewise

    def answers(self) -> dict[int, list[int]]:
        """Prompts and answers together, by seed."""
        return {
            request.sampling.seed: [
                *request.prompt, *(event.token_id for event in events if event.token_id is not None)
            ]
            for request, events in zip(self.requests, self.alone, strict=True)
        }  # fmt: skip


class Foreseeing:
    """An executor whose draft model knows the answers, and is wrong now and then. Seeds tell them apart."""

    max_draft_tokens = DRAFT_TOKENS

    def __init__(self, executor: Executor, rng: random.Random, answers: dict[int, list[int]]) -> None:
        """`answers`: whole sequences by seed."""
        self._executor = executor
        self._rng = rng
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, step: Step) -> abc.Sequence[SliceOutput]:
        outputs = self._executor.execute(Step([replace(piece, draft=None) for piece in step.slices]))
        proposals = map(self._proposed, step.slices, outputs)
        return [
            replace(output, proposed=part, confidences=(0.95,) * len(part))
            for output, part in zip(outputs, proposals, strict=True)
        ]

    def _proposed(self, piece: SequenceSlice, output: SliceOutput) -> tuple[int, ...]:
        if not piece.samples or piece.draft is None or piece.samples[0].params.seed not in self._answers:
            return ()
        end = piece.samples[0].position + len(output.token_ids)
        coming = self._answers[piece.samples[0].params.seed][end : end + piece.draft.num_tokens]
        return tuple(token_id if self._rng.random() < DRAFT_ACCURACY else 0 for token_id in coming)


@pytest.fixture(scope="module", params=BACKENDS)
def setup(request: pytest.FixtureRequest, tiny_model_path: Path) -> Iterator[Setup]:
    tokenizer = load_tokenizer(tiny_model_path)
    executor = create_executor(
        tiny_model_path,
        ExecutorOptions(
            backend=request.param,
            kv_cache_bytes=POOL_BLOCKS * BLOCK * kv_bytes_per_token_of(tiny_model_path),
            threads=1,
        ),
    )
    assert executor.num_blocks == POOL_BLOCKS
    requests = random_requests(random.Random(0), executor.config.vocab_size)
    alone = [answer_alone(executor, tokenizer, item) for item in requests]
    yield Setup(executor, tokenizer, requests, alone)
    executor.close()


def kv_bytes_per_token_of(path: Path) -> int:
    from flashlet.model.weights import open_weights

    source = open_weights(path)
    try:
        return kv_bytes_per_token(source.config, "int8")
    finally:
        source.close()


def random_requests(rng: random.Random, vocab_size: int) -> list[GenerationRequest]:
    """Prompts with and without shared prefixes, and every sampling parameter."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocab_size) for _ in range(count))

    prefixes = [(), tokens(20), tokens(40), tokens(66)]

    def request(index: int) -> GenerationRequest:
        long = index < LONG
        answer = 2 * BLOCK if long else rng.choice([0, 1, *range(2, 10)])
        prompt = tokens(BLOCK - 1) if long else rng.choice(prefixes) + tokens(rng.randint(1, 30))
        return GenerationRequest(
            prompt=prompt,
            sampling=random_sampling(rng, vocab_size),
            max_tokens=answer,
            min_tokens=min(answer, rng.choice([0, 0, 3])),
            ignore_eos=long or rng.random() < 0.3,
            stop=() if long else tuple(rng.sample([*ascii_letters, "th", "e "], rng.choice([0, 0, 1, 16]))),
            stop_token_ids=() if long else tokens(rng.choice([0, 0, 3, 40])),
            include_stop=rng.random() < 0.3,
            prompt_logprobs=rng.choice([None] * 8 + [0, 2]),
        )

    return [request(index) for index in range(REQUESTS)]


def random_sampling(rng: random.Random, vocab_size: int) -> SamplingParams:
    biased = rng.sample(range(vocab_size), rng.choice([0, 0, 0, 3]))
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 1, 5, 40]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.3]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        presence_penalty=rng.choice([0.0, 0.0, 1.0, -0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        logit_bias=tuple((token_id, rng.uniform(-5, 5)) for token_id in biased),
        seed=rng.getrandbits(64),
        logprobs=rng.choice([None, None, 0, 3]),
    )


def answer_alone(executor: Executor, tokenizer: Tokenizer, request: GenerationRequest) -> list[TokenEvent]:
    """Events of `request` on an engine of its own, its whole prompt in one step."""
    engine = Engine(executor, tokenizer, EngineConfig(enable_prefix_cache=False))
    engine.submit(request)
    events: list[TokenEvent] = []
    while engine.has_work:
        for _, event in engine.step():
            assert isinstance(event, TokenEvent)
            events.append(event)
    engine.check_integrity()
    return events


def test_requests_differ_enough(setup: Setup) -> None:
    """The comparison is worth something: answers end in different ways and at different lengths."""
    reasons = [events[-1].finish_reason for events in setup.alone]
    assert reasons.count("stop") >= 5
    assert reasons.count("length") >= 5
    assert len({tuple(event.token_id for event in events) for events in setup.alone}) > 30


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_batched_answers_equal_lone_ones(
    setup: Setup, seed: int, speculating: Callable[[Engine, random.Random], Engine]
) -> None:
    rng = random.Random(f"round {seed}")
    engine = Engine(setup.executor, setup.tokenizer, random_limits(rng))
    if seed % 2:
        foreseeing = Foreseeing(setup.executor, random.Random(seed), setup.answers())
        config = replace(engine.config, draft="auto", max_sequences=rng.choice([1, 4, 16]))
        engine = speculating(Engine(foreseeing, setup.tokenizer, config), random.Random(seed))
    answers, cancelled = run_round(setup, seed, rng, engine)
    assert not engine.has_work
    assert engine.stats().kv_usage == 0
    setup.preemptions[seed] = engine.stats().preemptions
    setup.prefix_hits[seed] = engine.stats().prefix_hits
    setup.accepted[seed] = engine.stats().accepted_tokens
    for index, events in answers.items():
        expected = [own_parts(event) for event in setup.alone[index]]
        found = [own_parts(event) for event in events]
        assert found == (expected[: len(found)] if index in cancelled else expected), f"request {index}"


def own_parts(event: TokenEvent) -> TokenEvent:
    """All that may not depend on other requests and on speculation."""
    return replace(event, num_cached_tokens=0, num_accepted=0, num_rejected=0)


def test_rounds_were_hard_enough(setup: Setup) -> None:
    if len(setup.preemptions) < ROUNDS:
        pytest.skip("looks back on all rounds")
    assert sum(count > 0 for count in setup.preemptions.values()) >= ROUNDS // 4
    assert sum(count > 0 for count in setup.prefix_hits.values()) >= ROUNDS // 4
    assert sum(count > 30 for count in setup.accepted.values()) >= ROUNDS // 4


def run_round(
    setup: Setup, seed: int, rng: random.Random, engine: Engine
) -> tuple[dict[int, list[TokenEvent]], set[int]]:
    """Run all requests together in a random order.

    Returns the events of each request, and who was cancelled before the end.
    """
    order = rng.sample(range(REQUESTS), REQUESTS)
    if seed % 3 != 0:
        order.sort(key=lambda index: index >= LONG)
    indices: dict[Sequence, int] = {engine.submit(setup.requests[index]): index for index in order}
    doomed = {sequence: rng.randrange(40) for sequence in indices if rng.random() < 0.15}
    answers: dict[int, list[TokenEvent]] = {index: [] for index in order}
    cancelled: set[int] = set()
    step = 0
    while engine.has_work:
        for sequence, deadline in doomed.items():
            if deadline == step and sequence.status is not SequenceStatus.FINISHED:
                engine.cancel(sequence)
                cancelled.add(indices[sequence])
        for sequence, event in engine.step():
            assert isinstance(event, TokenEvent)
            answers[indices[sequence]].append(event)
        engine.check_integrity()
        step += 1
    return answers, cancelled


def random_limits(rng: random.Random) -> EngineConfig:
    max_sequences = rng.choice([6, 8, 16])
    return EngineConfig(
        max_sequences=max_sequences,
        max_waiting=REQUESTS,
        max_step_tokens=rng.choice([16, 64, 256, 256]),
        prefill_chunk=rng.choice([7, 32, 64]),
        enable_prefix_cache=rng.random() < 0.8,
    )
