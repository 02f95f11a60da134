"""A toy world: an executor whose next token depends on every KV slot it reads, and bytes as tokens."""

from __future__ import annotations

import codecs
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import pytest

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.sampling import SampleRequest, SamplingParams, TokenLogprobs
from flashlet.model.step import SequenceSlice, SliceOutput, Step
from flashlet.serving.engine import engine as engine_module
from flashlet.serving.engine import estimator, scheduler, step_budget
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.errors import RequestError

EOS = 256
# Few distinct answers make repetitions, stop strings and shared prefixes likely; é has two bytes.
ALPHABET = [*b"abcdefgh  ", *b"abcdefgh  ", *"é".encode(), EOS]


def toy_config(context_length: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=257,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        context_length=context_length,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        tie_word_embeddings=True,
        eos_token_ids=(EOS,),
    )


class ToyExecutor:
    """Keeps (token, position) in each slot, and hashes what it reads back through the block table.

    A wrong table, a stale block or a token that was never computed changes the output or fails. Its draft
    model is right with probability `accuracy`, and checks that it has followed without a gap.
    """

    name = "toy"

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        context_length: int = 128,
        max_draft_tokens: int = 0,
        accuracy: float = 0.0,
    ) -> None:
        self.config = toy_config(context_length)
        self.num_blocks = num_blocks
        self.max_draft_tokens = max_draft_tokens
        self.accuracy = accuracy
        self.block_size = block_size
        self.steps: list[Step] = []
        self.before_step: Callable[[Step], None] = lambda step: None
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self._followed: set[int] = set()  # slots whose tokens the draft model has seen

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        assert step.slices
        copies = [dataclasses.replace(piece, block_table=tuple(piece.block_table)) for piece in step.slices]
        self.steps.append(Step(copies))
        self.before_step(step)
        size = self.block_size
        for piece in step.slices:
            if piece.copied_block is not None:
                source, target = piece.copied_block * size, piece.block_table[piece.start // size] * size
                self._slots[target : target + size] = self._slots[source : source + size]
        for piece in step.slices:
            for position, token_id in enumerate([*piece.token_ids, *piece.proposed], piece.start):
                slot = self._slot(piece, position)
                self._slots[slot] = (token_id, position)
                self._followed.discard(slot)
        return [self._output(piece) for piece in step.slices]

    def close(self) -> None:
        self._slots.clear()

    def _slot(self, piece: SequenceSlice, position: int) -> int:
        return piece.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _output(self, piece: SequenceSlice) -> SliceOutput:
        end = piece.start + len(piece.token_ids)
        context = []
        for position in range(end):
            entry = self._slots[self._slot(piece, position)]
            assert entry is not None and entry[1] == position, "a slot was never written or is not ours"
            context.append(entry[0])
        targets = tuple(
            self._score(context[: piece.start + i + 1], target, piece.num_top_logprobs)
            for i, target in enumerate(piece.logprob_targets)
        )
        tokens, logprobs = self._verify(piece, context)
        proposed = self._draft(piece, context, tokens)
        sure = (0.95,) * len(proposed)
        return SliceOutput(tuple(tokens), tuple(logprobs), targets, proposed, sure)

    def _verify(self, piece: SequenceSlice, context: list[int]) -> tuple[list[int], list[TokenLogprobs]]:
        tokens, logprobs = [], []
        assert not piece.samples or len(piece.samples) == 1 + len(piece.proposed)
        for i, sample in enumerate(piece.samples):
            prefix = [*context, *tokens]
            assert sample.position == len(prefix)
            tokens.append(self._choose(prefix, sample))
            if sample.params.logprobs is not None:
                logprobs.append(self._score(prefix, tokens[-1], sample.params.logprobs))
            if i < len(piece.proposed) and piece.proposed[i] != tokens[-1]:
                break
        return tokens, logprobs

    def _draft(self, piece: SequenceSlice, context: list[int], tokens: list[int]) -> tuple[int, ...]:
        if piece.draft is None:
            return ()
        assert self.max_draft_tokens >= piece.draft.num_tokens
        assert (piece.draft.next_token is None) == bool(piece.samples)
        known = [*context, *tokens]
        slots = [self._slot(piece, position) for position in range(len(known) - bool(tokens))]
        assert self._followed.issuperset(slots[piece.draft.start : piece.start]), (
            "the draft missed some tokens"
        )
        self._followed.update(slots[piece.start :])
        proposed: list[int] = []
        for _ in range(piece.draft.num_tokens):
            prefix = [*known, *proposed]
            sample = piece.samples[-1]
            if sample.params.needs_history:
                sample = dataclasses.replace(sample, output=prefix[len(sample.prompt) :])
            token_id = self._choose(prefix, sample)
            right = _hash(("draft", prefix)) % 1000 < 1000 * self.accuracy
            proposed.append(token_id if right else ALPHABET[0])
        return tuple(proposed)

    def _choose(self, context: list[int], sample: SampleRequest) -> int:
        params = sample.params
        if params.needs_history:
            assert [*sample.prompt, *sample.output] == context
        key = (context, params.seed, params.temperature, [*sample.output])
        choices = [token_id for token_id in ALPHABET if token_id not in sample.suppressed]
        if (mask := sample.allowed) is not None:
            choices = [token_id for token_id in choices if mask[token_id // 32] >> token_id % 32 & 1]
        return choices[_hash(key) % len(choices)]

    def _score(self, context: list[int], token_id: int, num_top: int) -> TokenLogprobs:
        logprob = -float(_hash((context, token_id)) % 1000)
        return TokenLogprobs(token_id, logprob, ((token_id, logprob),) * num_top)


def _hash(key: object) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest(), "big")


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < EOS else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    def stream_decoder(self, *, continuation: bool) -> ByteDecoder:
        return ByteDecoder()


@dataclass
class Answer:
    """What the client of one request has seen."""

    events: list[TokenEvent] = field(default_factory=list)
    error: RequestError | None = None

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if event.token_id is not None]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def finish_reason(self) -> str | None:
        return self.events[-1].finish_reason if self.events else None

    def visible(self) -> list[TokenEvent]:
        """All that may not depend on other requests."""
        own = {"num_cached_tokens": 0, "num_accepted": 0, "num_rejected": 0}
        return [dataclasses.replace(event, **own) for event in self.events]


def make_engine(executor: ToyExecutor | None = None, **options: Any) -> Engine:
    return Engine(executor or ToyExecutor(), ByteTokenizer(), EngineConfig(**options))


def run(engine: Engine, requests: list[GenerationRequest]) -> list[Answer]:
    """Run `requests` to their ends, checking the books after each step."""
    answers = {engine.submit(request): Answer() for request in requests}
    while engine.has_work:
        for sequence, event in engine.step():
            if isinstance(event, TokenEvent):
                answers[sequence].events.append(event)
            else:
                answers[sequence].error = event
        engine.check_integrity()
    return [*answers.values()]


def run_alone(request: GenerationRequest, longest: int) -> Answer:
    """The reference: one sequence, a big pool, no cache, the prompt in one chunk."""
    executor = ToyExecutor(num_blocks=64, context_length=longest)
    (answer,) = run(make_engine(executor, enable_prefix_cache=False), [request])
    return answer


def random_request(rng: random.Random, prefixes: list[tuple[int, ...]], longest: int) -> GenerationRequest:
    """A request of at most `longest` tokens, often with a prompt that others share."""
    prefix = rng.choice([(), *prefixes])
    prompt = prefix + tuple(rng.choices(b"abcdefgh", k=rng.randint(1, 20)))
    prompt = prompt[: longest - 1]
    room = longest - len(prompt)
    max_tokens = rng.choice([None, 0, rng.randint(1, room), rng.randint(1, room), rng.randint(1, room)])
    return GenerationRequest(
        prompt=prompt,
        sampling=SamplingParams(
            temperature=rng.choice([0.0, 0.7]),
            presence_penalty=rng.choice([0.0, 0.0, 0.5]),
            seed=rng.randint(0, 3),
            logprobs=rng.choice([None, None, 0, 2]),
        ),
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens or 0)]),
        ignore_eos=rng.random() < 0.5,
        stop=tuple(rng.choice(["ab", "aa", "é", "h c", "abcd"]) for _ in range(rng.randint(0, 2))),
        stop_token_ids=rng.choice([(), (), (ord("h"),)]),
        include_stop=rng.random() < 0.3,
        prompt_logprobs=rng.choice([None, None, None, None, 1]),
    )


def storm(engine: Engine, rng: random.Random) -> bool:
    """Many requests, some late, some cancelled: each gets what it gets alone. Whether any was cancelled."""
    prefixes = [tuple(rng.choices(b"abcdefgh", k=n)) for n in (8, 13, 24)]
    requests = [random_request(rng, prefixes, longest=engine.max_model_len) for _ in range(48)]
    answers = {engine.submit(r): Answer() for r in requests[:32]}
    late = requests[32:]
    cancelled: set[object] = set()
    while engine.has_work or late:
        for sequence, event in engine.step():
            assert isinstance(event, TokenEvent) and sequence not in cancelled
            answers[sequence].events.append(event)
        if rng.random() < 0.06:
            victim = rng.choice([*answers])
            if not victim.is_finished:
                engine.cancel(victim)
                cancelled.add(victim)
        if late and rng.random() < 0.2:
            answers[engine.submit(late.pop())] = Answer()
        engine.check_integrity()
    for sequence, answer in answers.items():
        expected = run_alone(sequence.request, engine.max_model_len).visible()
        seen = answer.visible()
        assert seen == (expected[: len(seen)] if sequence in cancelled else expected)
    assert engine.stats().kv_usage == 0.0
    return bool(cancelled)


@pytest.fixture
def toy() -> Iterator[SimpleNamespace]:
    """The names above, and at the end the proof that no engine made here leaked a block."""
    engines: list[Engine] = []

    def make_and_keep(executor: ToyExecutor | None = None, **options: Any) -> Engine:
        engines.append(make_engine(executor, **options))
        return engines[-1]

    yield SimpleNamespace(
        EOS=EOS,
        Answer=Answer,
        ByteDecoder=ByteDecoder,
        Executor=ToyExecutor,
        engine=make_and_keep,
        run=run,
        run_alone=run_alone,
        random_request=random_request,
        storm=storm,
    )
    for engine in engines:
        engine.check_integrity()
        assert engine.stats().kv_usage == 0.0 or engine.has_work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The engine's time, in seconds: it stands still but for who sets `now`."""
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    for module in (engine_module, estimator, scheduler, step_budget):
        monkeypatch.setattr(module, "time", clock)
    return clock
