"""ModelConfig from the config.json of a Hugging Face folder, in the key layouts of transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from flashlet.model.config import MAX_LAYERS, Architecture, ModelConfig
from flashlet.model.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from flashlet.model.hf_rope import RopeFields, rope_config

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
MAX_CONFIG_BYTES = 1 << 26  # a shard index of a large model has some megabytes
# What transformers assumes where the key is absent.
MISTRAL_WINDOW = 4096
QWEN_WINDOW = 4096
QWEN_MAX_WINDOW_LAYERS = 28
QWEN3_HEAD_DIM = 128


class GenerationFields(msgspec.Struct, kw_only=True):
    """The keys of generation_config.json that say when a sequence ends."""

    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None


class ConfigFields(RopeFields, kw_only=True):
    """The keys of config.json that change what a model computes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    architectures: list[str] | None = None
    num_key_value_heads: int | None = None
    head_dim: int | UnsetType | None = UNSET
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | UnsetType | None = UNSET
    use_sliding_window: bool = False
    max_window_layers: int = QWEN_MAX_WINDOW_LAYERS
    layer_types: list[str] | None = None
    quantization_config: Any = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None


Fields = TypeVar("Fields", bound=msgspec.Struct)


def read_hf_config(folder: Path) -> ModelConfig:
    """Shape of the model in `folder`; generation_config.json, if there, names its end tokens.

    Raises ModelNotFoundError without a config.json, ModelFormatError if a key is missing or has a wrong
    type, UnsupportedModelError for everything that would change the result and is not implemented.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(f"{folder}: expected a config.json, found none")
    fields = read_json(path, ConfigFields)
    architecture = _architecture(fields)
    _refuse_unsupported(fields)
    generation_path = folder / "generation_config.json"
    generation = (
        read_json(generation_path, GenerationFields) if generation_path.is_file() else GenerationFields()
    )
    has_attention_bias = fields.attention_bias and architecture in {"llama", "qwen3"}
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=fields.num_attention_heads,
        num_kv_heads=fields.num_attention_heads
        if fields.num_key_value_heads is None
        else fields.num_key_value_heads,
        head_dim=_head_dim(fields, architecture),
        context_length=fields.max_position_embeddings,
        rms_norm_eps=fields.rms_norm_eps,
        rope=rope_config(fields),
        tie_word_embeddings=fields.tie_word_embeddings,
        qkv_bias=has_attention_bias or architecture == "qwen2",
        o_bias=has_attention_bias,
        mlp_bias=fields.mlp_bias and architecture == "llama",
        qk_norm=architecture == "qwen3",
        sliding_windows=_sliding_windows(fields, architecture),
        bos_token_id=next(iter(_token_ids(generation.bos_token_id) or _token_ids(fields.bos_token_id)), None),
        eos_token_ids=_token_ids(generation.eos_token_id) or _token_ids(fields.eos_token_id),
    )


def read_json(path: Path, kind: type[Fields]) -> Fields:
    """Decode a small JSON file; unknown keys are skipped. Raises ModelFormatError."""
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ModelFormatError(f"{path.name}: expected at most {MAX_CONFIG_BYTES} bytes, found {size}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{path.name}: {error}") from error


def _architecture(fields: ConfigFields) -> Architecture:
    names = fields.architectures or ["no architecture"]
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"config.json: expected one of {', '.join(ARCHITECTURES)}, found {names[0]}"
        )
    return ARCHITECTURES[names[0]]


def _refuse_unsupported(fields: ConfigFields) -> None:
    if fields.quantization_config is not None:
        method = fields.quantization_config
        if isinstance(method, dict):
            method = method.get("quant_method", "unnamed")
        raise UnsupportedModelError(
            f"config.json: quantization_config ({method}) is not supported; "
            "use the unquantized model or a GGUF file"
        )
    if fields.hidden_act != "silu":
        raise UnsupportedModelError(f"config.json: hidden_act: expected silu, found {fields.hidden_act}")


def _head_dim(fields: ConfigFields, architecture: Architecture) -> int:
    if isinstance(fields.head_dim, int):
        return fields.head_dim
    if architecture == "qwen3" and fields.head_dim is UNSET:
        return QWEN3_HEAD_DIM
    heads = fields.num_attention_heads
    if heads < 1 or fields.hidden_size % heads:
        raise ModelFormatError(
            f"config.json: without head_dim, expected hidden_size to be a multiple of num_attention_heads, "
            f"found {fields.hidden_size} and {heads}"
        )
    return fields.hidden_size // heads


def _sliding_windows(fields: ConfigFields, architecture: Architecture) -> tuple[int, ...]:
    """Window of each layer, 0 for full attention; empty if no layer has one."""
    window = fields.sliding_window
    layers = min(max(fields.num_hidden_layers, 0), MAX_LAYERS)  # ModelConfig refuses what lies outside
    if architecture == "mistral":
        size = MISTRAL_WINDOW if window is UNSET else window
        sliding = [size is not None] * layers
        expected = ["sliding_attention" if size else "full_attention"] * layers
    elif architecture == "llama":
        size, sliding, expected = None, [False] * layers, ["full_attention"] * layers
        if isinstance(window, int):
            raise UnsupportedModelError("config.json: sliding_window is not part of LlamaForCausalLM")
    else:
        size = (QWEN_WINDOW if window is UNSET else window) if fields.use_sliding_window else None
        types = fields.layer_types
        if types is None:
            first = fields.max_window_layers if size is not None else layers
            types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
        sliding = [kind == "sliding_attention" for kind in types]
        expected = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    if fields.layer_types is not None and fields.layer_types != expected:
        raise UnsupportedModelError(
            "config.json: layer_types do not fit the architecture or name other kinds"
        )
    if not any(sliding):
        return ()
    if not isinstance(size, int) or size < 1:
        raise ModelFormatError(f"config.json: sliding_window: expected a positive number, found {size}")
    return tuple(size if slides else 0 for slides in sliding)


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
