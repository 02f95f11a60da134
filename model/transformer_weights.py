"""Builds the torch model's weights from parameters (fp32) or from packed panels (int8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashlet.kernels.reference import GroupedMatrix
from flashlet.model.arithmetic import Linear, Matrix
from flashlet.model.config import ModelConfig
from flashlet.model.parameters import parameter_shapes
from flashlet.model.quantize import PANEL, QuantizedMatrix, dequantize, unpack_panels
from flashlet.model.transformer import Layer, TransformerWeights
from flashlet.model.weights import WeightSource

Arrays = Mapping[str, NDArray[Any]]


def fp32_weights(source: WeightSource, device: torch.device) -> TransformerWeights:
    """Every parameter of `source` in binary32."""
    config = source.config
    shapes = parameter_shapes(config)

    def tensor(name: str) -> Tensor:
        return _tensor(source.tensor(name, shapes[name])).to(device)

    def optional(name: str) -> Tensor | None:
        return tensor(name) if name in shapes else None

    def linear(*names: str) -> Linear:
        biases = [tensor(f"{name}.bias") for name in names if f"{name}.bias" in shapes]
        return Linear(
            torch.cat([tensor(f"{name}.weight") for name in names]), torch.cat(biases) if biases else None
        )

    def layer(prefix: str) -> Layer:
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return Layer(
            attn_norm=tensor(f"{prefix}input_layernorm.weight"),
            qkv=linear(*(f"{attention}{name}_proj" for name in "qkv")),
            q_norm=optional(f"{attention}q_norm.weight"),
            k_norm=optional(f"{attention}k_norm.weight"),
            o=linear(f"{attention}o_proj"),
            ffn_norm=tensor(f"{prefix}post_attention_layernorm.weight"),
            gate_up=linear(f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=linear(f"{mlp}down_proj"),
        )

    embed = tensor("model.embed_tokens.weight")
    return TransformerWeights(
        config=config,
        embed=embed,
        layers=[layer(f"model.layers.{index}.") for index in range(config.num_layers)],
        final_norm=tensor("model.norm.weight"),
        head=embed if config.tie_word_embeddings else tensor("lm_head.weight"),
    )


def int8_weights(config: ModelConfig, arrays: Arrays, device: torch.device) -> TransformerWeights:
    """Weights from the arrays of an int8 model (docs/weight-cache.md); dequantized unless on the CPU."""
    hidden, inner = config.hidden_size, config.intermediate_size

    def tensor(name: str) -> Tensor:
        return _tensor(arrays[name]).to(device)

    def optional(name: str) -> Tensor | None:
        return tensor(name) if name in arrays else None

    def matrix(name: str, outputs: int, inputs: int) -> Matrix:
        return _matrix([unpack_panels(arrays[name], outputs, inputs)], device)

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        bias = optional(f"{name}_bias")
        return Linear(matrix(name, outputs, inputs), None if bias is None else bias[:outputs])

    def gate_up(name: str) -> Linear:
        gate_and_up = [unpack_panels(arrays[name][first::2], inner, hidden) for first in (0, 1)]
        bias = optional(f"{name}_bias")
        if bias is not None:
            bias = torch.cat([part[:inner] for part in bias.view(-1, 2, PANEL).transpose(0, 1).flatten(1)])
        return Linear(_matrix(gate_and_up, device), bias)

    def layer(prefix: str) -> Layer:
        return Layer(
            attn_norm=tensor(f"{prefix}attn_norm"),
            qkv=linear(f"{prefix}qkv", config.query_size + 2 * config.kv_size, hidden),
            q_norm=optional(f"{prefix}q_norm"),
            k_norm=optional(f"{prefix}k_norm"),
            o=linear(f"{prefix}o", hidden, config.query_size),
            ffn_norm=tensor(f"{prefix}ffn_norm"),
            gate_up=gate_up(f"{prefix}gate_up"),
            down=linear(f"{prefix}down", hidden, inner),
        )

    embed = matrix("embed", config.vocab_size, hidden)
    return TransformerWeights(
        config=config,
        embed=embed,
        layers=[layer(f"layers.{index}.") for index in range(config.num_layers)],
        final_norm=tensor("final_norm"),
        head=embed if config.tie_word_embeddings else matrix("head", config.vocab_size, hidden),
    )


def _matrix(parts: list[QuantizedMatrix], device: torch.device) -> Matrix:
    """One matrix from the outputs of all `parts`."""
    if device.type != "cpu":
        return torch.cat([_tensor(dequantize(part)) for part in parts]).to(device)
    weight = torch.cat([torch.from_numpy(part.q) for part in parts])
    return GroupedMatrix.from_int8(weight, torch.cat([torch.from_numpy(part.scale) for part in parts]))


def _tensor(array: NDArray[np.float32]) -> Tensor:
    """A tensor that outlives the file mapping behind `array`."""
    return torch.from_numpy(array.copy())
