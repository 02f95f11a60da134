"""The native executor: C++ owns weights, KV pool, threads and sampler; no torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashlet.kernels.cpu import BLOCK_SIZE, NativeModel, block_bytes
from flashlet.model.config import ModelConfig
from flashlet.model.draft import MAX_DRAFT_TOKENS, DraftConfig, load_draft, target_fingerprint
from flashlet.model.errors import OutOfMemoryError
from flashlet.model.executor import ExecutorOptions
from flashlet.model.int8_layout import int8_layout
from flashlet.model.rope import rope_tables
from flashlet.model.sampling import NoTokenError, TokenLogprobs
from flashlet.model.step import SliceOutput, Step
from flashlet.model.threads import physical_cores
from flashlet.model.weight_cache import load_int8

_Logprobs = tuple[int, float, tuple[tuple[int, float], ...]]  # token id, its logprob, the most likely ones

_Output = tuple[  # token ids, their logprobs, those of the targets, proposed tokens, confidences, features
    tuple[int, ...],
    Sequence[_Logprobs],
    Sequence[_Logprobs],
    tuple[int, ...],
    tuple[float, ...],
    "NDArray[np.float32] | None",
]


class NativeExecutor:
    """Runs int8 weights on the CPU; see docs/numerics.md for what it computes."""

    def __init__(self, path: Path, options: ExecutorOptions, isa: str = "") -> None:
        weights = load_int8(path)
        self._start(weights.config, weights.arrays, options, isa)
        weights.file.drop_pages()  # the native model has copied what it multiplies with

    @classmethod
    def from_arrays(
        cls,
        config: ModelConfig,
        arrays: Mapping[str, NDArray[Any]],
        options: ExecutorOptions,
        isa: str = "",
    ) -> NativeExecutor:
        """Build from packed arrays as docs/weight-cache.md names them; `isa` "" takes the best one.

        Raises ValueError for arrays that are missing or do not fit, OutOfMemoryError for too small or too
        large a KV cache.
        """
        if missing := int8_layout(config).keys() - arrays.keys():
            raise ValueError(f"{min(missing)}: missing among the arrays")
        executor = cls.__new__(cls)
        executor._start(config, arrays, options, isa)
        return executor

    def _start(
        self, config: ModelConfig, arrays: Mapping[str, NDArray[Any]], options: ExecutorOptions, isa: str
    ) -> None:
        self._config = config
        draft, draft_arrays = _load_draft(config, arrays, options)
        self._max_draft_tokens = MAX_DRAFT_TOKENS if draft else 0
        per_block = block_bytes(config, options.kv_dtype)
        if draft and draft.attention:
            per_block += block_bytes(draft.layers_config(config.context_length), options.kv_dtype)
        self._num_blocks: int = options.kv_cache_bytes // per_block
        if self._num_blocks < 2:
            raise OutOfMemoryError(
                f"KV cache: expected at least {2 * per_block} bytes for two blocks, "
                f"got {options.kv_cache_bytes}"
            )
        try:
            self._model = NativeModel(
                config,
                _with_rope(config, arrays),
                options.kv_dtype,
                self._num_blocks,
                options.max_step_tokens,
                options.max_sequences,
                options.threads or physical_cores(),
                isa,
                draft,
                draft_arrays,
            )
        except MemoryError:
            size = self._num_blocks * per_block
            raise OutOfMemoryError(f"weights and a KV cache of {size} bytes could not be allocated") from None
        parts = [self._model.isa, f"{self._model.threads} threads", f"{options.kv_dtype} KV"]
        if options.draft:
            parts.append(f"draft {options.draft.stem}")
        self._name = f"native int8 ({', '.join(parts)})"

    @property
    def config(self) -> ModelConfig:
        """Shape of the model that runs."""
        return self._config

    @property
    def name(self) -> str:
        """Implementation, instruction set, threads and KV format."""
        return self._name

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""
        return int(BLOCK_SIZE)

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._num_blocks

    @property
    def max_draft_tokens(self) -> int:
        """Most tokens that the draft model proposes in one step; 0 without a draft model."""
        return self._max_draft_tokens

    @property
    def native(self) -> NativeModel:
        """The C++ model, for measurements."""
        return self._model

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        """Run one ragged step; outputs are parallel to `step.slices`.

        Raises NoTokenError where no token is possible (logits that are NaN or infinite, a mask without
        tokens), ValueError if the step breaks the executor's limits.
        """
        return [_slice_output(item) for item in self._model.step(step.slices)]

    def logits(self, step: Step) -> NDArray[np.float32]:
        """Run the step and return its logits [rows that are sampled or scored, vocab_size]."""
        logits: NDArray[np.float32] = self._model.logits(step.slices)
        return logits

    def close(self) -> None:
        """Free threads and memory. Calling it twice is harmless."""
        self._model.close()


def _slice_output(item: _Output) -> SliceOutput:
    token_ids, logprobs, targets, proposed, confidences, features = item
    if (token_ids and token_ids[-1] < 0) or (targets and any(target[0] < 0 for target in targets)):
        raise NoTokenError("the model's logits are not numbers, or a mask left no token")
    # After a step nothing of Python is left in the processor's caches, so that every call counts.
    return SliceOutput(
        token_ids,
        _token_logprobs(logprobs) if logprobs else (),
        _token_logprobs(targets) if targets else (),
        proposed,
        confidences,
        features,
    )


def _token_logprobs(items: Sequence[_Logprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(*item) for item in items)


def _load_draft(
    config: ModelConfig, arrays: Mapping[str, NDArray[Any]], options: ExecutorOptions
) -> tuple[DraftConfig | None, dict[str, NDArray[Any]]]:
    """The draft model that `options` name, with the RoPE tables of its layers."""
    if options.draft is None:
        return None, {}
    draft, draft_arrays = load_draft(options.draft, config, target_fingerprint(arrays))
    return draft, _with_rope(draft.layers_config(config.context_length), draft_arrays)


def _with_rope(config: ModelConfig, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    cos, sin = rope_tables(config, config.context_length)
    return {**arrays, "rope_cos": cos, "rope_sin": sin}
