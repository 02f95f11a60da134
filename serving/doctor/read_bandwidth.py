"""How fast the threads of the native core read memory: the limit of decoding."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.executor import ExecutorOptions
from flashlet.model.int8_layout import int8_layout
from flashlet.model.weight_cache import Int8Weights
from flashlet.serving.memory import kv_bytes_per_token

_SAMPLES = 40
_DTYPES = {"U8": np.uint8, "F32": np.float32}
# One layer, and an output head that makes 128 MiB of it: no cache holds that much per core.
_BUFFER = ModelConfig(
    architecture="llama",
    vocab_size=123_360,
    hidden_size=1024,
    intermediate_size=64,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    context_length=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)


@dataclass(frozen=True, slots=True)
class ReadBandwidth:
    """Speed of reading once through all weights with all threads."""

    source: Literal["weights", "buffer"]  # of the model, or of the same kind but made up
    threads: int
    gb_per_second: float  # median
    spread: float  # from the tenth to the ninetieth percentile, as a share of the median


def measure_read_bandwidth(weights: Int8Weights | None, threads: int) -> ReadBandwidth:
    """Read the mapped `weights`, or 128 MiB of memory without them; takes up to a second for small models.

    `threads` 0 means one per physical core. Raises ImportError if the native core cannot be loaded.
    """
    from flashlet.model.executor_native import NativeExecutor

    config, arrays = (weights.config, weights.arrays) if weights else (_BUFFER, _filled(_BUFFER))
    options = ExecutorOptions(
        kv_cache_bytes=256 * kv_bytes_per_token(config, "int8"),
        max_step_tokens=1,
        max_sequences=1,
        threads=threads,
    )
    executor = NativeExecutor.from_arrays(config, arrays, options)
    try:
        executor.native.measure_read()  # maps the pages
        samples = [executor.native.measure_read() / 1e9 for _ in range(_SAMPLES)]
        used = executor.native.threads
    finally:
        executor.close()
    deciles = statistics.quantiles(samples, n=10)
    median = statistics.median(samples)
    return ReadBandwidth(
        "weights" if weights else "buffer", used, median, (deciles[-1] - deciles[0]) / median
    )


def _filled(config: ModelConfig) -> Mapping[str, NDArray[Any]]:
    """Arrays of this model full of ones; untouched pages of zeros would all be one page in the cache."""
    return {name: np.ones(shape, _DTYPES[dtype]) for name, (dtype, shape) in int8_layout(config).items()}
