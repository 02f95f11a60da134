"""A tiny model in both executors, and sequences that are decoded with proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashlet.kernels.cpu import TokenHistory
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.executor import Executor, ExecutorOptions
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, SliceOutput, Step
from flashlet.model.transformer_weights import int8_weights

OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 20, max_step_tokens=128, max_sequences=8, threads=2)
GREEDY = SamplingParams(temperature=0.0)
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=40,
    intermediate_size=50,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    context_length=160,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=False,
)


def native_executor(arrays: dict[str, NDArray[Any]], isa: str = "", **changes: Any) -> NativeExecutor:
    return NativeExecutor.from_arrays(CONFIG, arrays, replace(OPTIONS, **changes), isa)


def torch_executor(arrays: dict[str, NDArray[Any]], **changes: Any) -> TorchExecutor:
    weights = int8_weights(CONFIG, arrays, torch.device("cpu"))
    return TorchExecutor.from_weights(weights, replace(OPTIONS, **(changes | {"threads": 1})))


def random_tokens(count: int, seed: int = 2) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).tolist()


@dataclass
class DraftRun:
    """One sequence that is decoded with proposals."""

    prompt: list[int]
    table: list[int]
    params: SamplingParams = GREEDY
    num_tokens: int = 3  # to draft
    chunk: int = 1000
    follow_from: int = 0
    history: TokenHistory | None = None
    tokens: list[int] = field(default_factory=list)
    proposed: list[tuple[int, ...]] = field(default_factory=list)
    done: int = 0

    def next_slice(self, proposed: Sequence[int], *, draft: bool) -> SequenceSlice:
        text = self.prompt + self.tokens
        part = text[self.done : self.done + self.chunk]
        end = self.done + len(part)
        whole = end == len(text)
        if self.history is not None:
            self.history.extend(text)
        order = DraftRequest(
            self.num_tokens if whole else 0,
            min(self.follow_from, self.done),
            None if whole else text[end],
            history=self.history,
        )
        return SequenceSlice(
            part,
            self.done,
            self.table,
            samples=[SampleRequest(self.params, end + i) for i in range(1 + len(proposed))] if whole else (),
            proposed=proposed if whole else (),
            draft=order if draft and self.done >= self.follow_from else None,
        )

    def take(self, item: SequenceSlice, output: SliceOutput) -> None:
        self.done += len(item.token_ids) + max(0, len(output.token_ids) - 1)
        self.tokens += output.token_ids
        if item.samples:
            self.proposed.append(output.proposed)


def decode(executor: Executor, runs: list[DraftRun], count: int, *, draft: bool = True) -> None:
    """Until each sequence has `count` tokens; what was proposed is verified in the next step."""
    while active := [run for run in runs if len(run.tokens) < count]:
        items = [run.next_slice(run.proposed[-1] if run.proposed else (), draft=draft) for run in active]
        for run, item, output in zip(active, items, executor.execute(Step(items)), strict=True):
            run.take(item, output)


def decoded_alone(executor: Executor, prompt: list[int], params: SamplingParams, count: int) -> list[int]:
    run = DraftRun(prompt, [4, 1, 3, 0, 2], params)
    decode(executor, [run], count, draft=False)
    return run.tokens
