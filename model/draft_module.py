"""The draft model for training: rollouts over windows of target features, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.config import ModelConfig
from flashlet.model.decoder import DecoderLayer, RmsNorm
from flashlet.model.rope import rope_tables


class DraftModule(nn.Module):
    """Predicts, from the target's features of a row and its next token, what comes after; see DraftConfig.

    A row at position p sees token p + 1 and predicts token p + 2. Its output is the state of the next
    drafted row, so a rollout trains the positions beyond the first on the draft's own states (EAGLE-3,
    Li et al. 2025: training-time test).
    """

    def __init__(self, layer_config: ModelConfig, num_features: int, num_outputs: int, attention: bool) -> None:
        """`layer_config`: shape of the draft's own layers, hidden size and RoPE as in the target."""
        super().__init__()
        hidden, eps = layer_config.hidden_size, layer_config.rms_norm_eps
        self.has_attention = attention
        self.feature_norms = nn.ModuleList(RmsNorm(hidden, eps) for _ in range(num_features))
        self.fuse = nn.Linear(num_features * hidden, hidden, bias=False)
        self.state_norm, self.embed_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.mix = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(layer_config) for _ in range(layer_config.num_layers))
        self.out_norm = RmsNorm(hidden, eps)
        self.head = nn.Linear(hidden, num_outputs, bias=False)
        cos, sin = rope_tables(layer_config, layer_config.context_length)
        self.register_buffer("_cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(sin), persistent=False)

    def rollout(
        self, features: Tensor, embeddings: Tensor, starts: Tensor, rows: Tensor, num_steps: int
    ) -> list[Tensor]:
        """Outputs of the selected rows after 1 .. num_steps drafted tokens, each [batch, selected, hidden].

        Args:
            features: [batch, length, features, hidden] of windows.
            embeddings: [batch, length + num_steps - 1, hidden], entry i of the token after row i.
            starts: int64 [batch], position of each window's first row.
            rows: int64 [batch, selected], rows of the window to draft from, ascending.
        """
        if not self.has_attention:
            features = _take(features, rows)
        parts = [norm(part) for norm, part in zip(self.feature_norms, features.unbind(2), strict=True)]
        state = self.fuse(torch.cat(parts, dim=-1))
        if not self.has_attention:
            return self._rollout_alone(state, embeddings, rows, num_steps)
        length = state.shape[1]
        x = self._enter(state, embeddings[:, :length])
        caches = [_Cache() for _ in self.layers]
        window = torch.arange(length, device=x.device).expand(x.shape[0], -1)
        outputs: list[Tensor] = []
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            last = index == len(caches) - 1
            x = self._layer(layer, cache, x, starts, window, rows if last else window)
        outputs.append(x)
        for step in range(1, num_steps):
            x = self._enter(x, _take(embeddings, rows + step))
            for layer, cache in zip(self.layers, caches, strict=True):
                x = self._next(layer, cache, x, starts, rows, step)
            outputs.append(x)
        return outputs

    def logits(self, output: Tensor) -> Tensor:
        """[..., hidden] -> [..., reduced vocabulary]."""
        result: Tensor = self.head(self.out_norm(output))
        return result

    def _rollout_alone(self, state: Tensor, embeddings: Tensor, rows: Tensor, num_steps: int) -> list[Tensor]:
        outputs = []
        for step in range(num_steps):
            state = self._enter(state, _take(embeddings, rows + step))
            for layer in self.layers:
                state = layer.feed_forward(state)
            outputs.append(state)
        return outputs

    def _enter(self, state: Tensor, embedding: Tensor) -> Tensor:
        result: Tensor = state + self.mix(
            torch.cat([self.state_norm(state), self.embed_norm(embedding)], dim=-1)
        )
        return result

    def _layer(
        self, layer: DecoderLayer, cache: _Cache, x: Tensor, starts: Tensor, window: Tensor, rows: Tensor
    ) -> Tensor:
        """All rows of the window give keys and values; `rows` go on."""
        normed = layer.input_layernorm(x)
        cos, sin = self._rope(starts, window)
        cache.k, cache.v = layer.self_attn.keys_values(normed, cos, sin)
        cos, sin = self._rope(starts, rows)
        q = layer.self_attn.queries(_take(normed, rows), cos, sin)
        cache.mask = window[:, None, None, :] <= rows[:, None, :, None]
        return layer.feed_forward(_take(x, rows) + layer.self_attn.output(cache.attend(q)))

    def _next(
        self, layer: DecoderLayer, cache: _Cache, x: Tensor, starts: Tensor, rows: Tensor, step: int
    ) -> Tensor:
        """A drafted row: it attends to the true rows up to its own start, and to the drafted ones since."""
        normed = layer.input_layernorm(x)
        cos, sin = self._rope(starts, rows + step)
        cache.drafted.append(layer.self_attn.keys_values(normed, cos, sin))
        q = layer.self_attn.queries(normed, cos, sin)
        return layer.feed_forward(x + layer.self_attn.output(cache.attend(q)))

    def _rope(self, starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        positions = (starts[:, None] + rows).clamp(max=self._cos.shape[0] - 1)
        return self._cos[positions], self._sin[positions]


class _Cache:
    """Keys and values of one layer: of the window, and of the rows drafted since."""

    k: Tensor  # [batch, kv_heads, length, head_dim]
    v: Tensor
    mask: Tensor  # bool [batch, 1, selected, length]

    def __init__(self) -> None:
        self.drafted: list[tuple[Tensor, Tensor]] = []  # each [batch, kv_heads, selected, head_dim]

    def attend(self, q: Tensor) -> Tensor:
        """q [batch, heads, selected, head_dim] -> the same shape."""
        if not self.drafted:
            return functional.scaled_dot_product_attention(q, self.k, self.v, self.mask, enable_gqa=True)
        groups = q.shape[1] // self.k.shape[1]
        scale = q.shape[-1] ** -0.5
        grouped = q.unflatten(1, (-1, groups)) * scale  # [batch, kv_heads, groups, selected, head_dim]
        scores = grouped.flatten(2, 3) @ self.k.transpose(-1, -2)
        scores = scores.unflatten(2, (groups, -1)).masked_fill(~self.mask[:, :, None], -torch.inf)
        own = [(grouped * k[:, :, None]).sum(-1, keepdim=True) for k, _ in self.drafted]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1)
        length = self.k.shape[2]
        result = (weights[..., :length].flatten(2, 3) @ self.v).unflatten(2, (groups, -1))
        for index, (_, v) in enumerate(self.drafted):
            result = result + weights[..., length + index, None] * v[:, :, None]
        return result.flatten(1, 2)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of each window: x [batch, length, ...], rows [batch, selected] -> [batch, selected, ...]."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], rows]
