"""RoPE tables against transformers' own frequencies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.rope import inverse_frequencies, rope_tables

CONFIG = ModelConfig(
    architecture="llama", vocab_size=8, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=1,
    num_kv_heads=1, head_dim=64, context_length=512, rms_norm_eps=1e-5, rope=RopeConfig(),
    tie_word_embeddings=True,
)  # fmt: skip

CASES: dict[str, tuple[RopeConfig, dict[str, Any]]] = {
    "none": (RopeConfig(theta=5e5), {"rope_type": "default"}),
    "linear": (
        RopeConfig(theta=5e5, scaling="linear", factor=4.0),
        {"rope_type": "linear", "factor": 4.0},
    ),
    "llama3": (
        RopeConfig(
            theta=5e5, scaling="llama3", factor=8.0, original_context=64,
            low_freq_factor=1.0, high_freq_factor=4.0,
        ),
        {
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
    ),
    "yarn": (
        RopeConfig(theta=5e5, scaling="yarn", factor=8.0, original_context=64),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    ),
    "yarn with every option": (
        RopeConfig(
            theta=1e4, scaling="yarn", factor=4.0, original_context=128, beta_fast=16.0, beta_slow=2.0,
            attention_factor=0.7, truncate=False,
        ),
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0,
            "beta_slow": 2.0, "attention_factor": 0.7, "truncate": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tables_equal_transformers(name: str) -> None:
    rope, parameters = CASES[name]
    hf = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=512,
            rope_parameters=parameters | {"rope_theta": rope.theta},
        )
    )  # fmt: skip
    config = replace(CONFIG, rope=rope)
    np.testing.assert_allclose(inverse_frequencies(config), hf.inv_freq.double().numpy(), rtol=1e-6)
    cos, sin = rope_tables(config, 100)
    assert (cos.shape, cos.dtype, sin.dtype) == ((100, 32), np.float32, np.float32)
    angles = np.outer(np.arange(100), inverse_frequencies(config))
    np.testing.assert_array_equal(cos, (np.cos(angles) * hf.attention_scaling).astype(np.float32))
    np.testing.assert_array_equal(sin, (np.sin(angles) * hf.attention_scaling).astype(np.float32))


def test_frequency_factors_divide() -> None:
    factors = tuple(np.linspace(1.0, 8.0, 32).tolist())
    scaled = replace(CONFIG, rope=RopeConfig(frequency_factors=factors))
    np.testing.assert_array_equal(inverse_frequencies(scaled), inverse_frequencies(CONFIG) / factors)


def test_unknown_original_context_is_the_context_length() -> None:
    rope = RopeConfig(scaling="yarn", factor=4.0)
    known = replace(CONFIG, rope=replace(rope, original_context=512))
    np.testing.assert_array_equal(inverse_frequencies(replace(CONFIG, rope=rope)), inverse_frequencies(known))
