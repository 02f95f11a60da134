"""Writers of tiny random models for the tests of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.draft import DraftConfig, draft_shapes, save_draft
from flashlet.model.int8_layout import int8_arrays
from flashlet.model.parameters import parameter_shapes

Weights = dict[str, NDArray[np.float32]]
WriteGguf = Callable[..., Path]
WriteFolder = Callable[..., Path]

BASE = ModelConfig(
    architecture="llama",
    vocab_size=40,
    hidden_size=256,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    context_length=128,
    rms_norm_eps=2.0**-20,
    rope=RopeConfig(theta=10_000.0),
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture
def config() -> ModelConfig:
    """A Llama small enough to write in milliseconds, with rows that fit every block size of GGUF."""
    return BASE


@pytest.fixture
def narrow_config() -> ModelConfig:
    """Widths that are multiples of neither 16 nor 32, and every optional parameter."""
    return replace(
        BASE, architecture="qwen3", vocab_size=37, hidden_size=40, intermediate_size=50, num_heads=3,
        num_kv_heads=1, head_dim=6, qkv_bias=True, o_bias=True, mlp_bias=False, qk_norm=True,
    )  # fmt: skip


@pytest.fixture
def random_weights() -> Callable[[ModelConfig], Weights]:
    """Normal weights for each parameter of a config, seeded."""

    def make(config: ModelConfig) -> Weights:
        rng = np.random.default_rng(7)
        return {
            name: rng.normal(0, 0.1, shape).astype(np.float32)
            for name, shape in parameter_shapes(config).items()
        }

    return make


class RandomWeights:
    """Seeded parameters of a config, scaled so that every layer and the context sway the logits."""

    identity = ""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._rng = np.random.default_rng(1)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        spread = 1.0 if name.startswith("model.embed") else 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        return self._rng.normal(mean, spread, shape).astype(np.float32)

    def has(self, name: str) -> bool:
        return name in parameter_shapes(self.config)

    def formats(self) -> dict[str, tuple[int, int]]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def one_thread() -> None:
    """PyTorch computes on one thread: several that wait for each other are slow beside other tests."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packed_arrays() -> Callable[[ModelConfig], dict[str, NDArray[Any]]]:
    """The arrays of a random int8 model, as docs/weight-cache.md names them."""
    return lambda config: dict(int8_arrays(RandomWeights(config)))


WriteDraft = Callable[..., Path]


@pytest.fixture(scope="session")
def write_draft(tmp_path_factory: pytest.TempPathFactory) -> WriteDraft:
    """write_draft(config of the target, **changes of its DraftConfig) -> file of a random draft model."""

    def write(target: ModelConfig, **changes: Any) -> Path:
        shape: dict[str, Any] = {
            "features": (0, target.num_layers + 1), "output_vocab_size": max(1, target.vocab_size * 2 // 3),
            "intermediate_size": 50, "num_heads": 3, "num_kv_heads": 1, "head_dim": 24, "rope": target.rope,
            "rms_norm_eps": target.rms_norm_eps,
        }  # fmt: skip
        config = DraftConfig(target.hidden_size, target.vocab_size, target.num_layers, **(shape | changes))
        path = tmp_path_factory.mktemp("draft") / "random.safetensors"
        save_draft(path, config, _random_draft(config))
        return path

    return write


@pytest.fixture(scope="session")
def random_draft() -> Callable[[DraftConfig], Weights]:
    """The tensors of a random draft."""
    return _random_draft


def _random_draft(config: DraftConfig) -> Weights:
    """Seeded tensors of a draft, scaled so that every input sways its logits."""
    rng = np.random.default_rng(11)
    tensors: Weights = {}
    for name, shape in draft_shapes(config).items():
        if name == "vocab_ids":
            ids = rng.choice(config.vocab_size, shape, replace=False)
            tensors[name] = np.sort(ids).astype(np.int32)
        else:
            mean, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, shape[-1] ** -0.5)
            tensors[name] = rng.normal(mean, spread, shape).astype(np.float32)
    return tensors


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """write_gguf(config, weights, ...) -> path of a GGUF file; matrices are stored as `kind`."""

    def write(
        config: ModelConfig,
        weights: Weights,
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        metadata: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[Any]] | None = None,
        raw_types: Mapping[str, GGMLQuantizationType] | None = None,
        name: str = "model.gguf",
    ) -> Path:
        architecture = "llama" if config.architecture == "mistral" else config.architecture
        writer = GGUFWriter(tmp_path / name, architecture)
        for key, value in (_metadata(config) | dict(metadata or {})).items():
            general = key.startswith(("general.", "tokenizer."))
            _add(writer, key if general else f"{architecture}.{key}", value)
        for parameter, array in weights.items():
            stored = _stored_rows(config, parameter, array)
            if array.ndim == 2 and kind != GGMLQuantizationType.F32:
                blocks = gguf.quants.quantize(stored, kind)
                writer.add_tensor(gguf_name(parameter), blocks, raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(parameter), stored)
        for parameter, array in (extra or {}).items():
            writer.add_tensor(parameter, array, raw_dtype=(raw_types or {}).get(parameter))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """write_folder(config, weights, **changes of config.json) -> folder in the Hugging Face layout."""

    def write(config: ModelConfig, weights: Weights, name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(_config_json(config) | changes))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return write


def gguf_name(parameter: str) -> str:
    stem, suffix = parameter.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.{suffix}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{suffix}"


def _stored_rows(config: ModelConfig, name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Llama's query and key rows in GGUF order: halves of a head interleaved."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or config.architecture not in {"llama", "mistral"}:
        return array
    halves = array.reshape(heads, 2, config.head_dim // 2, -1)
    return np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).reshape(array.shape)


def _metadata(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope.theta,
        "rope.dimension_count": config.head_dim,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
        "tokenizer.ggml.tokens": [f"token {index}" for index in range(config.vocab_size)],
    }
    if config.sliding_windows:
        values["attention.sliding_window"] = config.sliding_windows[0]
    return values


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _config_json(config: ModelConfig) -> dict[str, Any]:
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    return {
        "architectures": [names[config.architecture] + "ForCausalLM"],
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
    }
