"""The executor protocol: whatever runs a step. The choice between implementations is made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flashlet.model.config import ModelConfig
from flashlet.model.step import SliceOutput, Step

Backend = Literal["auto", "native", "torch"]
WeightDtype = Literal["int8", "fp32"]
KvDtype = Literal["int8", "fp16", "fp32"]


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What the user may choose about running the model."""

    backend: Backend = "auto"
    device: str = "cpu"  # torch only: cpu, cuda, cuda:N
    weights: WeightDtype = "int8"
    kv_dtype: KvDtype = "int8"
    kv_cache_bytes: int = 1 << 30
    max_step_tokens: int = 512  # most rows in one step
    max_sequences: int = 64  # most slices in one step
    threads: int = 0  # 0: physical cores that this process may use


class Executor(Protocol):
    """Owns weights and KV contents; one call per step. Not thread-safe: one thread calls it."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the model that runs."""

    @property
    def name(self) -> str:
        """Implementation, weight format and instruction set, for logs and /metrics."""

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool; ids are 0 .. num_blocks - 1."""

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        """Run one ragged step; outputs are parallel to `step.slices`.

        K and V of every token of the step are stored before any attention of its layer reads them.
        """

    def close(self) -> None:
        """Free threads and memory. Calling it twice is harmless."""
