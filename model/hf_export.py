"""Writes a model as a Hugging Face folder: config.json, model.safetensors and what its tokenizer needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import UnsupportedModelError
from flashlet.model.hf_config import ARCHITECTURES
from flashlet.model.tokenizer import load_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip


def write_hf_folder(
    folder: Path, config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]], original: Path
) -> None:
    """Write a model of `config` whose tokenizer is that of the model at `original`, as float32.

    Raises UnsupportedModelError for what config.json has no plain key for: scaled RoPE and sliding windows.
    """
    from safetensors.numpy import save_file  # comes with the extra `torch`

    text = json.dumps(_config_json(config), indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text + "\n")
    if original.is_dir():
        for name in TOKENIZER_FILES:
            if (original / name).exists():
                shutil.copyfile(original / name, folder / name)
    else:
        load_tokenizer(original).save(folder)
    contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})


def _config_json(config: ModelConfig) -> dict[str, Any]:
    if config.rope.scaling != "none" or config.rope.frequency_factors or config.sliding_windows:
        raise UnsupportedModelError("a model with scaled RoPE or sliding windows cannot be written yet")
    names = {architecture: name for name, architecture in ARCHITECTURES.items()}
    result: dict[str, Any] = {
        "architectures": [names[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "torch_dtype": "float32",
    }
    if config.architecture == "mistral":
        result["sliding_window"] = None
    return result
