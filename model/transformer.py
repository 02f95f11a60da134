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
class Layer:
    """Weights of one decoder layer; norms are float32 vectors."""

    attn_norm: Tensor  # [hidden]
    qkv: Linear  # outputs: query heads, key heads, value heads
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    o: Linear
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


class Transformer:
    """Decoder-only transformer over a KV pool (Llama, Mistral, Qwen2, Qwen3)."""

    def __init__(self, weights: TransformerWeights, arithmetic: Arithmetic, pool: KvPool) -> None:
        self.config = weights.config
        self._weights, self._math, self._pool = weights, arithmetic, pool
        self._device = weights.final_norm.device
        length = min(self.config.context_length, pool.num_blocks * BLOCK_SIZE)
        cos, sin = rope_tables(self.config, length)
        self._cos, self._sin = torch.from_numpy(cos).to(self._device), torch.from_numpy(sin).to(self._device)

    @torch.inference_mode()
    def forward(
        self, token_ids: Sequence[int], segments: Sequence[Segment], features: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Store K and V of every token and return the last hidden states [tokens, hidden].

        The second result holds the residual stream after so many layers, for each number in `features`;
        num_layers + 1 stands for the stream after the final norm.
        """
        positions = torch.cat([torch.arange(s.start, s.start + s.length) for s in segments])
        blocks = torch.cat([
            s.block_table[torch.arange(s.start, s.start + s.length) // BLOCK_SIZE] for s in segments
        ])  # fmt: skip
        rows = _Rows(
            segments,
            blocks.to(self._device),
            (positions % BLOCK_SIZE).to(self._device),
            self._cos[positions],
            self._sin[positions],
        )
        tokens = torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        x = self._math.embed(tokens, self._weights.embed, self.config.hidden_size)
        kept = {0: x}
        for index, layer in enumerate(self._weights.layers):
            x = x + self._attention(index, layer, self._norm(x, layer.attn_norm), rows)
            x = x + self._feed_forward(layer, self._norm(x, layer.ffn_norm))
            if index + 1 in features:
                kept[index + 1] = x
        if self.config.num_layers + 1 in features:
            kept[self.config.num_layers + 1] = self._norm(x, self._weights.final_norm)
        return x, kept

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: [rows, hidden] -> [rows, vocabulary]."""
        return self._math.linear(self._norm(hidden, self._weights.final_norm), Linear(self._weights.head))

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._math.rms_norm(x, weight, self.config.rms_norm_eps)

    def _attention(self, index: int, layer: Layer, x: Tensor, rows: _Rows) -> Tensor:
        config = self.config
        qkv = torch.unflatten(self._math.linear(x, layer.qkv), 1, (-1, config.head_dim))
        q, k, v = torch.split(qkv, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        q = self._math.rope(self._norm(q, layer.q_norm), rows.cos, rows.sin)
        k = self._math.rope(self._norm(k, layer.k_norm), rows.cos, rows.sin)
        self._pool.store(index, rows.blocks, rows.slots, k, v)
        parts = []
        lengths = [segment.length for segment in rows.segments]
        for segment, queries in zip(rows.segments, torch.split(q, lengths), strict=True):
            kv = self._pool.read(index, segment.block_table.to(self._device))
            parts.append(self._math.attention(queries, kv, segment.start, config.window(index)))
        return self._math.linear(torch.cat(parts).flatten(1), layer.o)

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = self._math.linear(x, layer.gate_up).chunk(2, dim=1)
        return self._math.linear(self._math.silu(gate) * up, layer.down)


@dataclass(frozen=True)
class _Rows:
    """What every layer needs to know about the batch."""

    segments: Sequence[Segment]
    blocks: Tensor  # int64 [rows]: block id
    slots: Tensor  # int64 [rows]: place within the block
    cos: Tensor  # [rows, head_dim / 2]
    sin: Tensor
