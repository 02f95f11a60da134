"""config.json: key layouts of transformers 4 and 5, defaults, and what is refused by name."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from flashlet.model.config import RopeConfig
from flashlet.model.errors import FlashletError, ModelFormatError, UnsupportedModelError
from flashlet.model.weights import open_weights

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
ROPE_CASES: dict[str, tuple[dict[str, Any], RopeConfig]] = {
    "theta outside (4)": ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5)),
    "theta inside (5)": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        RopeConfig(theta=5e5),
    ),
    "linear, old key": (
        {"rope_scaling": {"type": "linear", "factor": 2}},
        RopeConfig(scaling="linear", factor=2.0),
    ),
    "llama3": (
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_context=32),
    ),
    "yarn": (
        {"rope_scaling": YARN | {"original_max_position_embeddings": 32, "beta_fast": 16}},
        RopeConfig(scaling="yarn", factor=4.0, original_context=32, beta_fast=16.0),
    ),
    "yarn without original context": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "attention_factor": 1.5}},
        RopeConfig(scaling="yarn", factor=4.0, original_context=128, truncate=False, attention_factor=1.5),
    ),
    "yarn without factor": (
        {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}},
        RopeConfig(scaling="yarn", factor=4.0, original_context=32),
    ),
    "yarn with mscale": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
        RopeConfig(scaling="yarn", factor=4.0, original_context=128, attention_factor=1.0),
    ),
    "original context outside": (
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
        RopeConfig(scaling="llama3", factor=8.0, original_context=16),
    ),
}


@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_key_layouts(case, config, random_weights, write_folder):
    changes, expected = ROPE_CASES[case]
    assert open_weights(write_folder(config, random_weights(config), **changes)).config.rope == expected


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "architecture": ({"architectures": ["GemmaForCausalLM"]}, UnsupportedModelError, "GemmaForCausalLM"),
    "no architecture": ({"architectures": None}, UnsupportedModelError, "expected one of"),
    "activation": ({"hidden_act": "gelu"}, UnsupportedModelError, "expected silu, found gelu"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModelError, "awq"),
    "dynamic rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModelError, "dynamic"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModelError, "longrope"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
    "rope by layer type": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        UnsupportedModelError,
        "differ by layer type",
    ),
    "window of a llama": ({"sliding_window": 16}, UnsupportedModelError, "sliding_window"),
    "layer types of a llama": (
        {"layer_types": ["sliding_attention"] * 2},
        UnsupportedModelError,
        "layer_types",
    ),
    "linear without factor": (
        {"rope_scaling": {"type": "linear"}},
        ModelFormatError,
        "factor: expected a number",
    ),
    "llama3 factors": (
        {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
        ModelFormatError,
        "low_freq_factor",
    ),
    "factor zero": ({"rope_scaling": {"type": "linear", "factor": 0.0}}, ModelFormatError, "factor"),
    "text for a number": (
        {"hidden_size": "256"},
        ModelFormatError,
        r"Expected `int`, got `str` - at `\$.hidden_size`",
    ),
    "no number": ({"vocab_size": None}, ModelFormatError, "vocab_size"),
    "negative": ({"intermediate_size": -1}, ModelFormatError, "intermediate_size"),
    "beyond 64 bits": ({"num_hidden_layers": 10**40}, ModelFormatError, "num_"),
    "absurd layers": ({"num_hidden_layers": 10**9}, ModelFormatError, "at most 4096, found 1000000000"),
    "zero heads": ({"num_attention_heads": 0, "head_dim": None}, ModelFormatError, "num_attention_heads"),
    "heads do not divide": ({"num_key_value_heads": 3}, ModelFormatError, "multiple of"),
    "epsilon": ({"rms_norm_eps": 0}, ModelFormatError, "rms_norm_eps"),
    "other shape": (
        {"intermediate_size": 128},
        ModelFormatError,
        r"expected shape \[128, 256\], found \[256, 256\]",
    ),
    "more layers": ({"num_hidden_layers": 3}, ModelFormatError, r"expected a tensor model\.layers\.2\."),
    "fewer layers": (
        {"num_hidden_layers": 1},
        UnsupportedModelError,
        r"no place for the tensor model\.layers\.1\.",
    ),
    "bias without tensors": ({"attention_bias": True}, ModelFormatError, r"q_proj\.bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_are_refused(case, config, random_weights, write_folder):
    changes, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        open_weights(write_folder(config, random_weights(config), **changes))


def test_defaults_of_absent_keys_follow_transformers(config, random_weights, write_folder):
    config = replace(config, architecture="mistral", num_kv_heads=4)
    folder = write_folder(config, random_weights(config), num_key_value_heads=None)
    found = open_weights(folder).config
    assert (found.num_kv_heads, found.sliding_windows) == (4, (4096, 4096))


def test_flipped_config_bytes_raise_typed_errors(config, random_weights, write_folder):
    folder = write_folder(config, random_weights(config))
    whole = (folder / "config.json").read_bytes()
    generator = random.Random(5)
    for _ in range(200):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] = generator.randrange(256)
        (folder / "config.json").write_bytes(content)
        try:
            open_weights(folder)
        except FlashletError as error:
            assert str(error)
