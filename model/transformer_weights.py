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
from flashlet.model.transformer import Attention, Layer, TransformerWeights
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
            attention=Attention(
                norm=tensor(f"{prefix}input_layernorm.weight"),
                qkv=linear(*(f"{attention}{name}_proj" for name in "qkv")),
                q_norm=optional(f"{attention}q_norm.weight"),
                k_norm=optional(f"{attention}k_norm.weight"),
                o=linear(f"{attention}o_proj"),
            ),
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
    read = Int8Reader(arrays, device, exact=device.type == "cpu")
    hidden = config.hidden_size
    embed = read.matrix("embed", config.vocab_size, hidden)
    return TransformerWeights(
        config=config,
        embed=embed,
        layers=[read.layer(config, f"layers.{index}.") for index in range(config.num_layers)],
        final_norm=read.tensor("final_norm"),
        head=embed if config.tie_word_embeddings else read.matrix("head", config.vocab_size, hidden),
    )


class Int8Reader:
    """Makes tensors from packed arrays: matrices of integer groups if `exact`, else dequantized."""

    def __init__(self, arrays: Arrays, device: torch.device, *, exact: bool) -> None:
        self._arrays, self._device, self._exact = arrays, device, exact

    def tensor(self, name: str) -> Tensor:
        """A vector as it is."""
        return _tensor(self._arrays[name]).to(self._device)

    def matrix(self, name: str, outputs: int, inputs: int) -> Matrix:
        """A packed matrix [outputs, inputs]."""
        return self._matrix([unpack_panels(self._arrays[name], outputs, inputs)])

    def layer(self, config: ModelConfig, prefix: str) -> Layer:
        """The decoder layer whose arrays have this prefix."""
        hidden, inner = config.hidden_size, config.intermediate_size
        return Layer(
            attention=self._attention(config, prefix) if f"{prefix}qkv" in self._arrays else None,
            ffn_norm=self.tensor(f"{prefix}ffn_norm"),
            gate_up=self._gate_up(f"{prefix}gate_up", inner, hidden),
            down=self._linear(f"{prefix}down", hidden, inner),
        )

    def _attention(self, config: ModelConfig, prefix: str) -> Attention:
        return Attention(
            norm=self.tensor(f"{prefix}attn_norm"),
            qkv=self._linear(f"{prefix}qkv", config.query_size + 2 * config.kv_size, config.hidden_size),
            q_norm=self._optional(f"{prefix}q_norm"),
            k_norm=self._optional(f"{prefix}k_norm"),
            o=self._linear(f"{prefix}o", config.hidden_size, config.query_size),
        )

    def _optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self._arrays else None

    def _linear(self, name: str, outputs: int, inputs: int) -> Linear:
        bias = self._optional(f"{name}_bias")
        return Linear(self.matrix(name, outputs, inputs), None if bias is None else bias[:outputs])

    def _gate_up(self, name: str, inner: int, hidden: int) -> Linear:
        gate_and_up = [unpack_panels(self._arrays[name][first::2], inner, hidden) for first in (0, 1)]
        bias = self._optional(f"{name}_bias")
        if bias is not None:
            bias = torch.cat([part[:inner] for part in bias.view(-1, 2, PANEL).transpose(0, 1).flatten(1)])
        return Linear(self._matrix(gate_and_up), bias)

    def _matrix(self, parts: list[QuantizedMatrix]) -> Matrix:
        """One matrix from the outputs of all `parts`."""
        if not self._exact:
            return torch.cat([_tensor(dequantize(part)) for part in parts]).to(self._device)
        weight = torch.cat([torch.from_numpy(part.q) for part in parts])
        scale = torch.cat([torch.from_numpy(part.scale) for part in parts])
        return GroupedMatrix.from_int8(weight, scale, parts[0].bits)


def _tensor(array: NDArray[np.float32]) -> Tensor:
    """A tensor that outlives the file mapping behind `array`."""
    return torch.from_numpy(array.copy())
