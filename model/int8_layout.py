"""The arrays of an int8 model: names, layouts, and how they are made from the parameters.

Documented for consumers in docs/weight-cache.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ModelFormatError
from flashlet.model.parameters import parameter_shapes
from flashlet.model.quantize import CELL_BYTES, CELL_BYTES_4, GROUP, PANEL, pack_panels, quantize_matrix
from flashlet.model.weights import WeightSource

Layout = dict[str, tuple[str, tuple[int, ...]]]


def int8_layout(config: ModelConfig) -> Layout:
    """(safetensors dtype, shape) of every array, in file order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    qkv = config.query_size + 2 * config.kv_size
    layout: Layout = {}
    for layer in range(config.num_layers):
        arrays = {
            "attn_norm": vector(hidden),
            "qkv": packed(panels_of(qkv), hidden),
            "qkv_bias": vector(panels_of(qkv) * PANEL) if config.qkv_bias else None,
            "q_norm": vector(config.head_dim) if config.qk_norm else None,
            "k_norm": vector(config.head_dim) if config.qk_norm else None,
            "o": packed(panels_of(hidden), config.query_size),
            "o_bias": vector(panels_of(hidden) * PANEL) if config.o_bias else None,
            "ffn_norm": vector(hidden),
            "gate_up": packed(2 * panels_of(inner), hidden),
            "gate_up_bias": vector(2 * panels_of(inner) * PANEL) if config.mlp_bias else None,
            "down": packed(panels_of(hidden), inner),
            "down_bias": vector(panels_of(hidden) * PANEL) if config.mlp_bias else None,
        }
        layout |= {f"layers.{layer}.{name}": entry for name, entry in arrays.items() if entry}
    layout["embed"] = packed(panels_of(config.vocab_size), hidden)
    if not config.tie_word_embeddings:
        layout["head"] = packed(panels_of(config.vocab_size), hidden)
    layout["final_norm"] = vector(hidden)
    return layout


def int8_arrays(source: WeightSource) -> Iterator[tuple[str, NDArray[Any]]]:
    """Quantize and pack the parameters of `source`, array by array in the order of `int8_layout`.

    Raises ModelFormatError with the name of a matrix that int8 cannot represent.
    """
    return _ArrayBuilder(source).arrays()


class _ArrayBuilder:
    """Makes each array from the parameters it fuses; one array is in memory at a time."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._config = source.config
        self._shapes = parameter_shapes(source.config)

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for layer in range(self._config.num_layers):
            for name, array in self._layer(f"model.layers.{layer}."):
                yield f"layers.{layer}.{name}", array
        yield "embed", self._matrix("model.embed_tokens.weight")
        if not self._config.tie_word_embeddings:
            yield "head", self._matrix("lm_head.weight")
        yield "final_norm", self._tensor("model.norm.weight")

    def _layer(self, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        attention, mlp, config = prefix + "self_attn.", prefix + "mlp.", self._config
        qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
        yield "attn_norm", self._tensor(prefix + "input_layernorm.weight")
        yield "qkv", self._matrix(*(name + ".weight" for name in qkv))
        if config.qkv_bias:
            yield "qkv_bias", self._bias(*(name + ".bias" for name in qkv))
        if config.qk_norm:
            yield "q_norm", self._tensor(attention + "q_norm.weight")
            yield "k_norm", self._tensor(attention + "k_norm.weight")
        yield "o", self._matrix(attention + "o_proj.weight")
        if config.o_bias:
            yield "o_bias", self._bias(attention + "o_proj.bias")
        yield "ffn_norm", self._tensor(prefix + "post_attention_layernorm.weight")
        gate, up = mlp + "gate_proj", mlp + "up_proj"
        yield "gate_up", alternate_panels(self._matrix(gate + ".weight"), self._matrix(up + ".weight"))
        if config.mlp_bias:
            biases = (self._bias(name + ".bias").reshape(-1, PANEL) for name in (gate, up))
            yield "gate_up_bias", alternate_panels(*biases).reshape(-1)
        yield "down", self._matrix(mlp + "down_proj.weight")
        if config.mlp_bias:
            yield "down_bias", self._bias(mlp + "down_proj.bias")

    def _matrix(self, *names: str) -> NDArray[np.uint8]:
        """The rows of all `names` as one packed matrix."""
        try:
            quantized = quantize_matrix(self._concatenated(*names))
        except ModelFormatError as error:
            raise ModelFormatError(f"{' + '.join(names)}: {error}") from error
        return pack_panels(quantized)

    def _bias(self, *names: str) -> NDArray[np.float32]:
        bias = self._concatenated(*names)
        return np.pad(bias, (0, -len(bias) % PANEL))

    def _concatenated(self, *names: str) -> NDArray[np.float32]:
        # Without a copy for a single one: an embedding table is the largest array of all.
        return self._tensor(names[0]) if len(names) == 1 else np.concatenate([*map(self._tensor, names)])

    def _tensor(self, name: str) -> NDArray[np.float32]:
        return self._source.tensor(name, self._shapes[name])


def alternate_panels(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Gate and up in one matrix: panel 0 of the first, panel 0 of the second, panel 1 of the first, ..."""
    return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def panels_of(outputs: int) -> int:
    """Panels that hold so many outputs."""
    return -(-outputs // PANEL)


def packed(panels: int, inputs: int, bits: int = 8) -> tuple[str, tuple[int, ...]]:
    """Entry of a layout: a matrix of groups of integers."""
    return "U8", (panels, -(-inputs // GROUP), CELL_BYTES if bits == 8 else CELL_BYTES_4)


def vector(size: int) -> tuple[str, tuple[int, ...]]:
    """Entry of a layout: binary32 numbers."""
    return "F32", (size,)
