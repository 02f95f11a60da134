"""Hugging Face folders: four architectures as transformers writes them, key layouts, and refusals."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.errors import FlashletError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from flashlet.model.weights import open_weights, source_identity

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SAVED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    ),
    "llama wide heads, tied": (
        "Llama",
        {"head_dim": 16, "tie_word_embeddings": True},
        {"head_dim": 16, "tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", {"sliding_window": 16}, {"sliding_windows": (16, 16, 16)}),
    "mistral, full attention": ("Mistral", {"sliding_window": None}, {}),
    "qwen2": ("Qwen2", {}, {"qkv_bias": True}),
    "qwen2, upper layers slide": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        {"qkv_bias": True, "sliding_windows": (0, 16, 16)},
    ),
    "qwen3": (
        "Qwen3",
        {"head_dim": 16, "attention_bias": True},
        {"head_dim": 16, "qk_norm": True, "qkv_bias": True, "o_bias": True},
    ),
    "qwen3, chosen layers slide": (
        "Qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {"qk_norm": True, "sliding_windows": (16, 0, 16)},
    ),
}


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_what_transformers_saves_is_read_back(case, sharded, tmp_path):
    name, options, expected = SAVED[case]
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**SHAPE, **options, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, f"{name}ForCausalLM")(settings).to(
        torch.bfloat16 if sharded else torch.float32
    )
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded

    source = open_weights(tmp_path)
    base = ModelConfig(
        architecture=name.lower(),
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context_length=64,
        rms_norm_eps=1e-6,
        rope=RopeConfig(),
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2, 5),
    )
    assert source.config == replace(base, **expected)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and source.config.tie_word_embeddings:
            continue
        np.testing.assert_array_equal(source.tensor(key, tuple(tensor.shape)), tensor.float().numpy())
    assert list(source.formats()) == ["BF16" if sharded else "F32"]
    source.close()


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


def test_a_tied_matrix_that_is_stored_twice_is_read_once(config, random_weights, write_folder):
    tied = replace(config, tie_word_embeddings=True)
    source = open_weights(write_folder(tied, random_weights(config)))
    assert source.config.tie_word_embeddings


def test_derived_frequencies_of_old_checkpoints_are_skipped(config, random_weights, write_folder):
    weights = random_weights(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    open_weights(write_folder(config, weights))


def test_numbers_that_are_not_finite_are_refused(config, random_weights, write_folder):
    weights = random_weights(config)
    weights["model.norm.weight"][9] = np.inf
    with pytest.raises(ModelFormatError, match=r"model\.norm\.weight: expected finite"):
        open_weights(write_folder(config, weights)).tensor("model.norm.weight", (config.hidden_size,))


def test_pickles_are_never_opened(config, random_weights, write_folder, tmp_path):
    folder = write_folder(config, random_weights(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="expected model.safetensors"):
        open_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(UnsupportedModelError, match="pickle can run code"):
        open_weights(folder)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "shard", ["../model/model.safetensors", "/etc/passwd", "sub/../model.safetensors", "..", "a.bin", ""]
)
def test_shards_stay_inside_the_folder(shard, config, random_weights, write_folder):
    folder = write_folder(config, random_weights(config))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ModelFormatError, match="expected the name of a safetensors file"):
        open_weights(folder)


def test_missing_shards_and_tensors_are_named(config, random_weights, write_folder):
    folder = write_folder(config, random_weights(config))
    names = list(load_file(folder / "model.safetensors"))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "gone.safetensors")}))
    with pytest.raises(ModelFormatError, match=r"expected a file gone\.safetensors"):
        open_weights(folder)
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys([*names, "other"], "model.safetensors")})
    )
    with pytest.raises(ModelFormatError, match="expected a tensor other"):
        open_weights(folder)


def test_links_may_leave_the_folder(config, random_weights, write_folder, tmp_path):
    folder = write_folder(config, random_weights(config))
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert open_weights(folder).has("model.norm.weight")


def test_paths_that_are_no_model(config, random_weights, write_folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_weights(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        open_weights(tmp_path)
    folder = write_folder(config, random_weights(config))
    with pytest.raises(ModelFormatError, match="expected the folder"):
        open_weights(folder / "model.safetensors")


def test_the_identity_follows_the_files(config, random_weights, write_folder):
    weights = random_weights(config)
    folder = write_folder(config, weights)
    first = source_identity(folder)
    assert open_weights(folder).identity == first
    (folder / "README.md").write_text("not part of the weights")
    assert source_identity(folder) == first
    changed = {name: array + 1 for name, array in weights.items()}
    save_file(changed, folder / "model.safetensors")
    second = source_identity(folder)
    assert second != first
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert source_identity(folder) != second
