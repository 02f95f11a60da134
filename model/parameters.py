"""Names and shapes of a model's parameters, in the Hugging Face convention for Llama-like models."""

from __future__ import annotations

from collections.abc import Mapping

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ModelFormatError, UnsupportedModelError

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every parameter that a model of this shape has; matrices are [out, in]."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def check_parameters(config: ModelConfig, found: Mapping[str, Shape], where: str) -> None:
    """Compare the tensors of a file, by name and shape, with what the model needs.

    Raises ModelFormatError if one is missing or has another shape, UnsupportedModelError if one would be
    ignored: a model with an extra bias or adapter computes something else than we would.
    """
    needed = parameter_shapes(config)
    for name, shape in needed.items():
        if name not in found:
            raise ModelFormatError(f"{where}: expected a tensor {name} {list(shape)}, found none")
        check_shape(name, shape, found[name], where)
    extra = sorted(found.keys() - needed.keys())
    if extra:
        raise UnsupportedModelError(
            f"{where}: {config.architecture} has no place for the tensor {extra[0]}"
            + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
        )


def check_shape(name: str, expected: Shape, found: Shape, where: str) -> None:
    """Raise ModelFormatError unless both shapes are equal."""
    if expected != found:
        raise ModelFormatError(f"{where}: {name}: expected shape {list(expected)}, found {list(found)}")


def _layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, inner = config.hidden_size, config.intermediate_size
    matrices = {
        "self_attn.q_proj": (config.query_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, config.query_size, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (rows, columns, has_bias) in matrices.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)
    if config.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    return shapes
