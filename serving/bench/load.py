"""An executor with just the KV pool that a benchmark needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flashlet.model.config import ModelConfig
from flashlet.model.errors import UnsupportedModelError
from flashlet.model.executor import Executor, ExecutorOptions, create_executor
from flashlet.model.weights import open_weights
from flashlet.serving.bench.options import BenchOptions
from flashlet.serving.config import MemoryAmount
from flashlet.serving.memory import available_memory, kv_bytes_per_token, plan_kv_cache

_LARGEST_BLOCK = 64  # tokens; at least every executor's block size
_LANES = 16  # the native core pads heads to them


def load_executor(
    path: Path, options: ExecutorOptions, bench: BenchOptions, isa: str | None = None
) -> Executor:
    """Load the model at `path`; limits and pool come from `bench`, the rest from `options`.

    `isa` is an instruction set of the native core; None takes the best one.

    Raises:
        UnsupportedModelError: the options do not go together, or the model's context is too short.
        FlashletError: what loading raises.
    """
    source = open_weights(path)
    config = source.config
    source.close()
    bench.check(config)
    options = replace(
        options,
        kv_cache_bytes=_kv_cache_bytes(config, options, bench),
        max_step_tokens=max(bench.max_step_tokens, *bench.batch_sizes),
        max_sequences=max(bench.batch_sizes),
    )
    return create_executor(path, options) if isa is None else _native(path, options, isa)


def _kv_cache_bytes(config: ModelConfig, options: ExecutorOptions, bench: BenchOptions) -> int:
    padded = replace(config, head_dim=-(-config.head_dim // _LANES) * _LANES)
    tokens = bench.kv_tokens(config, _LARGEST_BLOCK)
    wanted = MemoryAmount(num_bytes=tokens * kv_bytes_per_token(padded, options.kv_dtype))
    return plan_kv_cache(config, options.weights, options.kv_dtype, wanted, tokens, available_memory())


def _native(path: Path, options: ExecutorOptions, isa: str) -> Executor:
    from flashlet.kernels.cpu import instruction_sets
    from flashlet.model.executor_native import NativeExecutor

    if isa not in instruction_sets():
        known = ", ".join(instruction_sets())
        raise UnsupportedModelError(f"instruction set: expected one of {known} on this machine, got {isa!r}")
    if (
        options.backend == "torch"
        or options.weights != "int8"
        or options.kv_dtype == "fp32"
        or options.device != "cpu"
    ):
        raise UnsupportedModelError(
            "only the native backend, with int8 weights, lets the instruction set be chosen"
        )
    return NativeExecutor(path, options, isa)
