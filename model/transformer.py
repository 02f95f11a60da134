"""The torch model: a ragged batch of tokens in, hidden states and logits out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashlet.kernels.reference import BLOCK_SIZE
from flashlet.model.arithmetic import Arithmetic, Linear, Matrix
from flashlet.model.config import ModelConfig
from flashlet.model.kv_pool import KvPool
from flashlet.model.rope import rope_tables


@dataclass(frozen=True)
class Attention:
    """Weights of the attention of one layer; norms are float32 vectors."""

    norm: Tensor  # [hidden]
    qkv: Linear  # outputs: query heads, key heads, value heads
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    o: Linear


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer."""

    attention: Attention | None  # None: feed-forward only
    ffn_norm: Tensor  # [hidden]
    gate_up: Linear  # outputs: all gates, then all ups
    down: Linear


@dataclass(frozen=True)
class TransformerWeights:
    """Weights of a whole model; `head` is `embed` if they are tied."""

    config: ModelConfig
    embed: Matrix  # outputs: vocabulary
    layers: Sequence[Layer]
    final_norm: Tensor  # [hidden]
    head: Matrix  # outputs: vocabulary


@dataclass(frozen=True)
class Segment:
    """Rows of one sequence in the batch, at positions start .. start + length - 1."""

    length: int
    start: int
    block_table: Tensor  # int64 [blocks], up to the one that holds the last position
    first_visible: int = 0  # positions before this one are not seen


class Decoder:
    """Decoder layers over a KV pool (Llama, Mistral, Qwen2, Qwen3)."""

    def __init__(
        self, config: ModelConfig, layers: Sequence[Layer], arithmetic: Arithmetic, pool: KvPool
    ) -> None:
        self.config, self._layers, self._math, self._pool = config, layers, arithmetic, pool
        self._device = layers[0].ffn_norm.device
        length = min(config.context_length, pool.num_blocks * BLOCK_SIZE)
        cos, sin = rope_tables(config, length)
        self._cos, self._sin = torch.from_numpy(cos).to(self._device), torch.from_numpy(sin).to(self._device)

    def rows(self, segments: Sequence[Segment]) -> Rows:
        """What the layers need to know about a batch."""
        positions = torch.cat([torch.arange(s.start, s.start + s.length) for s in segments])
        blocks = torch.cat([
            s.block_table[torch.arange(s.start, s.start + s.length) // BLOCK_SIZE] for s in segments
        ])  # fmt: skip
        return Rows(
            segments,
            blocks.to(self._device),
            (positions % BLOCK_SIZE).to(self._device),
            self._cos[positions],
            self._sin[positions],
        )

    def layer(self, index: int, x: Tensor, rows: Rows) -> Tensor:
        """Store K and V of the rows; residual stream [rows, hidden] -> after the layer."""
        layer = self._layers[index]
        if layer.attention:
            x = x + self._attend(index, layer.attention, x, rows)
        return x + self._feed_forward(layer, self._norm(x, layer.ffn_norm))

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._math.rms_norm(x, weight, self.config.rms_norm_eps)

    def _attend(self, index: int, weights: Attention, x: Tensor, rows: Rows) -> Tensor:
        config = self.config
        projected = self._math.linear(self._norm(x, weights.norm), weights.qkv)
        qkv = torch.unflatten(projected, 1, (-1, config.head_dim))
        q, k, v = torch.split(qkv, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        q = self._math.rope(self._norm(q, weights.q_norm), rows.cos, rows.sin)
        k = self._math.rope(self._norm(k, weights.k_norm), rows.cos, rows.sin)
        self._pool.store(index, rows.blocks, rows.slots, k, v)
        parts, window = [], config.window(index)
        lengths = [segment.length for segment in rows.segments]
        for segment, queries in zip(rows.segments, torch.split(q, lengths), strict=True):
            kv = self._pool.read(index, segment.block_table.to(self._device))
            parts.append(self._math.attention(queries, kv, segment.start, window, segment.first_visible))
        return self._math.linear(torch.cat(parts).flatten(1), weights.o)

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = self._math.linear(x, layer.gate_up).chunk(2, dim=1)
        return self._math.linear(self._math.silu(gate) * up, layer.down)


class Transformer:
    """Decoder-only transformer."""

    def __init__(self, weights: TransformerWeights, arithmetic: Arithmetic, pool: KvPool) -> None:
        self.config = weights.config
        self._weights, self._math = weights, arithmetic
        self._decoder = Decoder(weights.config, weights.layers, arithmetic, pool)

    @torch.inference_mode()
    def forward(
        self, token_ids: Sequence[int], segments: Sequence[Segment], features: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Store K and V of every token and return the last hidden states [tokens, hidden].

        The second result holds the residual stream after so many layers, for each number in `features`;
        num_layers + 1 stands for the stream after the final norm.
        """
        rows = self._decoder.rows(segments)
        x = self.embed(token_ids)
        kept = {0: x}
        for index in range(self.config.num_layers):
            x = self._decoder.layer(index, x, rows)
            if index + 1 in features:
                kept[index + 1] = x
        if self.config.num_layers + 1 in features:
            kept[self.config.num_layers + 1] = self._final_norm(x)
        return x, kept

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: [rows, hidden] -> [rows, vocabulary]."""
        return self._math.linear(self._final_norm(hidden), Linear(self._weights.head))

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens] -> [tokens, hidden]."""
        tokens = torch.tensor(token_ids, dtype=torch.int64, device=self._weights.final_norm.device)
        return self._math.embed(tokens, self._weights.embed, self.config.hidden_size)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self._math.rms_norm(x, self._weights.final_norm, self.config.rms_norm_eps)


@dataclass(frozen=True)
class Rows:
    """What every layer needs to know about the batch."""

    segments: Sequence[Segment]
    blocks: Tensor  # int64 [rows]: block id
    slots: Tensor  # int64 [rows]: place within the block
    cos: Tensor  # [rows, head_dim / 2]
    sin: Tensor
