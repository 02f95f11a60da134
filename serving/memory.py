"""How much memory a model needs, and how much the process may still take."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from flashlet.model.cgroup import free_memory
from flashlet.model.config import ModelConfig
from flashlet.model.errors import OutOfMemoryError
from flashlet.model.executor import KvDtype, WeightDtype
from flashlet.model.parameters import parameter_shapes
from flashlet.serving.config import MemoryAmount, format_bytes

DEFAULT_SHARE = 0.25  # of the free memory, unless fewer tokens than that can ever be in use
_WEIGHT_BYTES = {"int8": 1 + 2 / 32, "fp32": 4.0}  # int8: a binary16 scale for every 32 weights
_KV_BYTES = {"int8": 1, "fp16": 2, "fp32": 4}


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping, within the limits of the container or service, if any.

    `root` replaces / for what the system says in files about those.
    """
    available = psutil.virtual_memory().available
    allowed = free_memory(root)
    return max(available if allowed is None else min(available, allowed), 0)


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, norms and biases included."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def weight_bytes(config: ModelConfig, weights: WeightDtype) -> int:
    """Bytes of the weights in memory."""
    return int(parameter_count(config) * _WEIGHT_BYTES[weights])


def kv_bytes_per_token(config: ModelConfig, kv_dtype: KvDtype) -> int:
    """Bytes of K and V of one token over all layers; an int8 head vector has a binary32 scale."""
    scale = 4 if kv_dtype == "int8" else 0
    return 2 * config.num_layers * config.num_kv_heads * (config.head_dim * _KV_BYTES[kv_dtype] + scale)


def plan_kv_cache(
    config: ModelConfig,
    weights: WeightDtype,
    kv_dtype: KvDtype,
    wanted: MemoryAmount | None,
    max_tokens: int,
    available: int,
) -> int:
    """Bytes for the KV pool: what was asked for, or a quarter of what is free but no more than can be used.

    `max_tokens` is the most tokens that may be in use at once; `available` is in bytes.

    Raises:
        OutOfMemoryError: weights and pool do not fit.
    """
    free = available - weight_bytes(config, weights)
    usable = max_tokens * kv_bytes_per_token(config, kv_dtype)
    kv_bytes = wanted.of(max(free, 0)) if wanted else min(int(DEFAULT_SHARE * max(free, 0)), usable)
    if free <= 0 or kv_bytes > free:
        raise OutOfMemoryError(
            f"not enough memory: the weights need {format_bytes(available - free)} and the KV cache "
            f"{format_bytes(kv_bytes)}, but {format_bytes(available)} are available"
        )
    return kv_bytes
