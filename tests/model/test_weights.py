"""Hugging Face folders: four architectures as transformers writes them, and folders that are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
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
    with pytest.raises(ModelNotFoundError, match="cannot be read: No such file"):
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
