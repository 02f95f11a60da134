"""Means of hidden states: the same bytes whatever the chunks, the batch and the preemptions."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashlet.model.step import SequenceSlice, SliceOutput
from flashlet.serving.engine.pooling import MeanPooling
from flashlet.serving.engine.request import GenerationRequest

HIDDEN = 8


def hidden_state(context: list[int]) -> NDArray[np.float32]:
    return np.random.default_rng(context).normal(size=HIDDEN).astype(np.float32)


def executor_with_features(toy: SimpleNamespace, **options: Any) -> Any:
    class Executor(toy.Executor):  # type: ignore[misc, name-defined]
        def _output(self, piece: SequenceSlice) -> SliceOutput:
            output: SliceOutput = super()._output(piece)
            if not piece.features:
                return output
            assert piece.features == (self.config.num_layers + 1,)
            slots = [self._slots[self._slot(piece, i)][0] for i in range(piece.start + len(piece.token_ids))]
            rows = [hidden_state(slots[: piece.start + i + 1]) for i in range(len(piece.token_ids))]
            return dataclasses.replace(output, features=np.stack(rows)[:, None])

    return Executor(**options)


def request(prompt: bytes, **options: Any) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), max_tokens=0, embed=True, **options)


def test_the_mean_is_that_of_all_rows() -> None:
    pooling = MeanPooling(3)
    rows = np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    pooling.push(rows[:1])
    pooling.clear()
    pooling.push(rows[:2])
    pooling.push(rows[2:])
    assert pooling.feature == 3 and pooling.mean.tolist() == [4.0, 5.0] and pooling.mean.dtype == np.float64


def test_embeddings_do_not_depend_on_chunks_batch_or_preemption(toy: SimpleNamespace) -> None:
    rng = random.Random(2)
    prompts = [
        b"abcdefgh" * 2 + b"abcd",
        *(bytes(rng.choices(b"abcdefgh", k=rng.randint(1, 30))) for _ in range(12)),
    ]
    prompts += [prompts[0]] * 2
    expected = [
        toy.run(toy.engine(executor_with_features(toy)), [request(prompt)])[0].events[0].embedding.tobytes()
        for prompt in prompts
    ]
    means = [
        np.mean([hidden_state([*prompt[: i + 1]]) for i in range(len(prompt))], axis=0) for prompt in prompts
    ]
    assert all(np.allclose(np.frombuffer(one), mean) for one, mean in zip(expected, means, strict=True))
    executor = executor_with_features(toy, num_blocks=14, context_length=40)
    engine = toy.engine(executor, max_step_tokens=7, prefill_chunk=1, max_sequences=5)
    growing = [GenerationRequest((97 + i,), max_tokens=15, ignore_eos=True, priority=-1) for i in range(3)]
    answers = toy.run(engine, [*growing, *map(request, prompts)])[3:]
    assert engine.stats().preemptions
    assert [answer.events[0].embedding.tobytes() for answer in answers] == expected
    assert all(len(answer.events) == 1 and answer.finish_reason == "length" for answer in answers)


def test_embedding_leaves_the_prefix_cache_alone(toy: SimpleNamespace) -> None:
    engine = toy.engine(executor_with_features(toy))
    chat = GenerationRequest(tuple(b"abcdefgh"), max_tokens=1)
    toy.run(engine, [request(b"abcdefgh")])
    assert toy.run(engine, [chat])[0].events[0].num_cached_tokens == 0
    (answer,) = toy.run(engine, [request(b"abcdefgh")])
    assert answer.events[0].num_cached_tokens == 0 and engine.stats().prefix_queries == 8


def test_an_answer_may_follow_the_embedding(toy: SimpleNamespace) -> None:
    both = GenerationRequest(tuple(b"abc"), max_tokens=3, ignore_eos=True, embed=True)
    (answer,) = toy.run(toy.engine(executor_with_features(toy)), [both])
    assert [event.embedding is not None for event in answer.events] == [True, False, False, False]
