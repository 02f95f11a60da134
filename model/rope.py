"""Rotary position embedding tables (Su et al. 2021), shared by every executor."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig, RopeConfig


def rope_tables(config: ModelConfig, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (cos, sin), each [length, head_dim / 2], for positions 0 .. length - 1.

    Computed in binary64 and rounded once; yarn's attention factor is multiplied in.
    """
    angles = np.outer(np.arange(length, dtype=np.float64), inverse_frequencies(config))
    scale = _attention_factor(config.rope)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def inverse_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Radians per position of each rotated pair, [head_dim / 2], after context scaling."""
    rope = config.rope
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies: NDArray[np.float64] = 1.0 / rope.theta**exponents
    original_context = rope.original_context or config.context_length
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        frequencies = _llama3(frequencies, rope, original_context)
    elif rope.scaling == "yarn":
        frequencies = _yarn(frequencies, rope, original_context, config.head_dim)
    return np.divide(frequencies, rope.frequency_factors or 1.0, dtype=np.float64)


def _llama3(frequencies: NDArray[np.float64], rope: RopeConfig, original_context: int) -> NDArray[np.float64]:
    """Slow down pairs that turn less than `low_freq_factor` times in the original context (Llama 3.1)."""
    turns = original_context * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return np.multiply(frequencies, kept + (1.0 - kept) / rope.factor)


def _yarn(
    frequencies: NDArray[np.float64], rope: RopeConfig, original_context: int, head_dim: int
) -> NDArray[np.float64]:
    """Keep fast pairs, stretch slow ones, ramp linearly between (Peng et al. 2023, section 3.2)."""

    def pair_turning(turns: float) -> float:
        wavelength = original_context / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001  # the published code's guard against an empty ramp
    stretched: NDArray[np.float64] = np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)
    return np.multiply(frequencies, (1.0 - stretched) + stretched / rope.factor)


def _attention_factor(rope: RopeConfig) -> float:
    """Yarn multiplies queries and keys by 0.1 ln(factor) + 1 unless the model says otherwise."""
    if rope.scaling != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0
