"""GGUF weights: every architecture and storage type comes out as it went in; metadata become a config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.gguf import GgufWeights
from flashlet.model.gguf_header import read_gguf_header
from flashlet.model.weights import open_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"head_dim": 128},
    "mistral": {"architecture": "mistral", "sliding_windows": (32, 32)},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_round_trips(variant, config, random_weights, write_gguf):
    config = replace(config, **VARIANTS[variant])
    weights = random_weights(config)
    source = open_weights(write_gguf(config, weights))
    assert source.config == config
    for name, array in weights.items():
        loaded = source.tensor(name, array.shape)
        assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
        np.testing.assert_array_equal(loaded, array)
    assert source.has("lm_head.weight") is not config.tie_word_embeddings
    source.close()


WRITABLE = [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_storage_types_dequantize_in_place(kind, config, random_weights, write_gguf):
    weights = random_weights(config)
    source = open_weights(write_gguf(config, weights, kind))
    for name, array in weights.items():
        expected = array
        if array.ndim == 2:
            # Groups lie along a row, so reordering rows and rounding commute.
            expected = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        np.testing.assert_array_equal(source.tensor(name, array.shape), expected)
    parameters, size = source.formats()[kind.name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert parameters == sum(array.size for array in weights.values() if array.ndim == 2)
    assert size == parameters // block * block_bytes


# Types that the package only reads: random blocks whose binary16 fields are made harmless.
HALVES = {
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,), Kind.IQ2_XXS: (0,), Kind.IQ3_S: (0,), Kind.IQ1_S: (0,),
}  # fmt: skip


@pytest.mark.parametrize("kind", HALVES, ids=lambda kind: kind.name)
def test_block_types_that_are_only_read(kind, config, random_weights, write_gguf):
    weights = random_weights(config)
    name, shape = "model.layers.1.mlp.down_proj.weight", (config.hidden_size, config.intermediate_size)
    blocks = _random_blocks(kind, shape)
    del weights[name]
    path = write_gguf(
        config, weights, extra={"blk.1.ffn_down.weight": blocks}, raw_types={"blk.1.ffn_down.weight": kind}
    )
    loaded = open_weights(path).tensor(name, shape)
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.unique(expected).size > 10
    np.testing.assert_array_equal(loaded, expected)


def test_large_tensors_are_dequantized_in_chunks(config, random_weights, write_gguf, monkeypatch):
    monkeypatch.setattr("flashlet.model.gguf.CHUNK_ELEMENTS", 3 * config.hidden_size)
    weights = random_weights(config)
    source = open_weights(write_gguf(config, weights, Kind.Q8_0))
    name = "lm_head.weight"
    expected = gguf.quants.dequantize(gguf.quants.quantize(weights[name], Kind.Q8_0), Kind.Q8_0)
    np.testing.assert_array_equal(source.tensor(name, expected.shape), expected)


def test_types_that_cannot_be_dequantized_are_named(config, random_weights, write_gguf):
    weights = random_weights(config)
    doubles = weights.pop("model.norm.weight").astype(np.float64)
    source = open_weights(write_gguf(config, weights, extra={"output_norm.weight": doubles}))
    with pytest.raises(UnsupportedModelError, match="F64"):
        source.tensor("model.norm.weight", (config.hidden_size,))


def test_a_damaged_scale_is_refused(config, random_weights, write_gguf):
    weights = random_weights(config)
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    source = open_weights(write_gguf(config, weights))
    with pytest.raises(ModelFormatError, match=r"up_proj.*finite"):
        source.tensor("model.layers.0.mlp.up_proj.weight", (config.intermediate_size, config.hidden_size))


def test_asking_for_another_shape_or_name_says_what_was_found(config, random_weights, write_gguf):
    source = open_weights(write_gguf(config, random_weights(config)))
    with pytest.raises(ModelFormatError, match=r"expected shape \[7\], found \[256\]"):
        source.tensor("model.norm.weight", (7,))
    with pytest.raises(ModelFormatError, match=r"expected a tensor model\.nothing"):
        source.tensor("model.nothing", (7,))


ROPE_CASES: dict[str, tuple[dict[str, Any], RopeConfig]] = {
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        RopeConfig(scaling="linear", factor=4.0),
    ),
    "linear-old-key": ({"rope.scale_linear": 2.0}, RopeConfig(scaling="linear", factor=2.0)),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, RopeConfig()),
    "yarn": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_beta_fast": 16.0,
        },
        RopeConfig(scaling="yarn", factor=4.0, original_context=32, beta_fast=16.0),
    ),
    "yarn-magnitude": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 0.5,
        },
        RopeConfig(
            scaling="yarn", factor=4.0, original_context=32, attention_factor=0.5 * (0.1 * np.log(4.0) + 1)
        ),
    ),
}


@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_scaling(case, config, random_weights, write_gguf):
    metadata, expected = ROPE_CASES[case]
    assert open_weights(write_gguf(config, random_weights(config), metadata=metadata)).config.rope == expected


def test_frequency_factors_of_llama3_come_from_their_tensor(config, random_weights, write_gguf):
    factors = np.linspace(1, 8, config.head_dim // 2, dtype=np.float32)
    path = write_gguf(config, random_weights(config), extra={"rope_freqs.weight": factors})
    assert open_weights(path).config.rope.frequency_factors == tuple(factors.tolist())
    path = write_gguf(
        config, random_weights(config), extra={"rope_freqs.weight": factors[:5]}, name="short.gguf"
    )
    with pytest.raises(ModelFormatError, match="expected 32 numbers, found 5"):
        open_weights(path)


def test_end_tokens_are_collected_once(config, random_weights, write_gguf):
    metadata = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    source = open_weights(write_gguf(config, random_weights(config), metadata=metadata))
    assert source.config.eos_token_ids == (2, 5)


REFUSED_METADATA: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "other architecture": ({"general.architecture": "gemma3"}, UnsupportedModelError, "gemma3"),
    "experts": ({"expert_count": 8}, UnsupportedModelError, "expert_count"),
    "logit scale": ({"logit_scale": 0.5}, UnsupportedModelError, "logit_scale"),
    "not causal": ({"attention.causal": False}, UnsupportedModelError, "causal"),
    "window pattern": ({"attention.sliding_window_pattern": [True, False]}, UnsupportedModelError, "pattern"),
    "longrope": ({"rope.scaling.type": "longrope"}, UnsupportedModelError, "longrope"),
    "partial rotary": ({"rope.dimension_count": 32}, UnsupportedModelError, "dimension_count"),
    "other value width": ({"attention.value_length": 32}, UnsupportedModelError, "value_length"),
    "heads by layer": (
        {"attention.head_count_kv": [2, 1]},
        UnsupportedModelError,
        "differs from layer to layer",
    ),
    "text for a number": ({"block_count": "two"}, ModelFormatError, "expected int, found 'two'"),
    "flag for a number": ({"context_length": True}, ModelFormatError, "expected int, found True"),
    "no layers": ({"block_count": 0}, ModelFormatError, "num_layers"),
    "absurd layers": ({"block_count": 2**31}, ModelFormatError, "num_layers"),
    "more layers than tensors": ({"block_count": 3}, ModelFormatError, "blk|layers.2"),
    "fewer layers than tensors": ({"block_count": 1}, UnsupportedModelError, "layers.1"),
    "zero heads": ({"attention.head_count": 0}, ModelFormatError, "head_count"),
    "no frequency": ({"rope.freq_base": 0.0}, ModelFormatError, "theta"),
    "endless frequency": ({"rope.freq_base": float("nan")}, ModelFormatError, "theta"),
}


@pytest.mark.parametrize("case", REFUSED_METADATA)
def test_metadata_that_are_refused(case, config, random_weights, write_gguf):
    metadata, error, message = REFUSED_METADATA[case]
    with pytest.raises(error, match=message):
        open_weights(write_gguf(config, random_weights(config), metadata=metadata))


def test_one_number_for_every_layer_is_one_number(config, random_weights, write_gguf):
    path = write_gguf(config, random_weights(config), metadata={"attention.head_count_kv": [2, 2]})
    assert open_weights(path).config.num_kv_heads == 2


def test_tensors_without_a_place_are_refused(config, random_weights, write_gguf):
    extra = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedModelError, match="attn_sinks"):
        open_weights(write_gguf(config, random_weights(config), extra=extra))


def test_a_missing_tensor_is_named(config, random_weights, write_gguf):
    weights = random_weights(config)
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelFormatError, match=r"layers\.1\.mlp\.up_proj"):
        open_weights(write_gguf(config, weights))


def test_the_default_model(default_model_path):
    source = GgufWeights(default_model_path)
    assert source.config == ModelConfig(
        architecture="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30,
        num_heads=9, num_kv_heads=3, head_dim=64, context_length=8192, rms_norm_eps=float(np.float32(1e-5)),
        rope=RopeConfig(theta=100_000.0), tie_word_embeddings=True, bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip
    assert {name: count for name, (count, _) in source.formats().items()} == {
        "Q4_1": 106_168_320,
        "Q8_0": 28_311_552,
        "F32": 35_136,
    }
    reader = read_gguf_header(default_model_path)
    assert len(reader.metadata["tokenizer.ggml.tokens"]) == 49152
    assert reader.metadata["tokenizer.ggml.token_type"].shape == (49152,)


def _random_blocks(kind: Kind, shape: tuple[int, int]) -> np.ndarray:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = shape
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (rows, columns // block, block_bytes), dtype=np.uint8)
    for offset in HALVES[kind]:
        scales = rng.uniform(0.001, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)
