"""The executor protocol: whatever runs a step. The choice between implementations is made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from flashlet.model.config import ModelConfig
from flashlet.model.errors import MissingExtraError, UnsupportedModelError
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
    draft: Path | None = None  # file of a draft model for this target; native only
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

    @property
    def max_draft_tokens(self) -> int:
        """Most tokens that the draft model proposes in one step; 0 without a draft model."""

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        """Run one ragged step; outputs are parallel to `step.slices`.

        K and V of every token of the step are stored before any attention of its layer reads them.
        """

    def close(self) -> None:
        """Free threads and memory. Calling it twice is harmless."""


def runs_natively(options: ExecutorOptions) -> bool:
    """Whether `options` lead to the native executor."""
    return options.backend != "torch" and _native_fits(options)


def create_executor(path: Path, options: ExecutorOptions) -> Executor:
    """Load the model at `path` into the executor that `options` asks for.

    Backend auto is native for int8 weights on the CPU, else torch. Raises UnsupportedModelError for
    combinations that do not exist, MissingExtraError without torch, and what loading the weights raises.
    """
    if options.backend == "native" and not _native_fits(options):
        raise UnsupportedModelError(
            "the native backend runs int8 weights with int8 or fp16 KV on the CPU, got "
            f"{options.weights} weights with {options.kv_dtype} KV on {options.device}"
        )
    if runs_natively(options):
        from flashlet.model.executor_native import NativeExecutor

        return NativeExecutor(path, options)
    if find_spec("torch") is None:
        raise MissingExtraError("the torch backend needs torch: pip install 'flashlet[torch]'")
    from flashlet.model.executor_torch import TorchExecutor

    return TorchExecutor(path, options)


def _native_fits(options: ExecutorOptions) -> bool:
    return options.weights == "int8" and options.kv_dtype != "fp32" and options.device == "cpu"
