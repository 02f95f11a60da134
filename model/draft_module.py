"""The draft model for training: rollouts over windows of target features, with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.decoder import DecoderLayer, RmsNorm
from flashlet.model.draft import DraftConfig
from flashlet.model.rope import rope_tables
from flashlet.model.rounded_linear import round_linears

_SHORT_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "",
    "mlp.": "",
    "_proj": "",
}


class DraftModule(nn.Module):
    """Predicts, from the target's features of a row and its next token, what comes after; see DraftConfig.

    A row at position p sees token p + 1 and predicts token p + 2. Its output is the state of the next
    drafted row, so a rollout trains the positions beyond the first on the draft's own states (EAGLE-3,
    Li et al. 2025: training-time test).
    """

    _cos: Tensor
    _sin: Tensor

    def __init__(self, config: DraftConfig, context_length: int) -> None:
        super().__init__()
        self.config = config
        hidden, eps, layers = config.hidden_size, config.rms_norm_eps, config.layers_config(context_length)
        self.feature_norms = nn.ModuleList(RmsNorm(hidden, eps) for _ in config.features)
        self.fuse = nn.Linear(len(config.features) * hidden, hidden, bias=False)
        self.state_norm, self.embed_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.input = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(layers, config.attention) for _ in range(config.num_layers))
        self.out_norm = RmsNorm(hidden, eps)
        self.head = nn.Linear(hidden, config.output_vocab_size, bias=False)
        cos, sin = rope_tables(layers, context_length)
        self.register_buffer("_cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(sin), persistent=False)
        if config.bits == 4:
            round_linears(self)

    def rollout(
        self, features: Tensor, embeddings: Tensor, starts: Tensor, rows: Tensor, num_steps: int
    ) -> list[Tensor]:
        """Outputs of the selected rows after 1 .. num_steps drafted tokens, each [batch, selected, hidden].

        Args:
            features: [batch, length, features, hidden] of windows.
            embeddings: [batch, length, hidden], entry i of the token after row i. What a rollout gives
                beyond the window has no meaning.
            starts: int64 [batch], position of each window's first row.
            rows: int64 [batch, selected], rows of the window to draft from, ascending.
        """
        if not self.config.attention:
            features = _take(features, rows)
        parts = [norm(part) for norm, part in zip(self.feature_norms, features.unbind(2), strict=True)]
        state = self.fuse(torch.cat(parts, dim=-1)).float()  # also where products are in bfloat16
        if not self.config.attention:
            return self._rollout_alone(state, embeddings, rows, num_steps)
        length = state.shape[1]
        x = self._enter(state, embeddings[:, :length])
        caches = [_Cache() for _ in self.layers]
        window = torch.arange(length, device=x.device).expand(x.shape[0], -1)
        outputs: list[Tensor] = []
        for index, (layer, cache) in enumerate(zip(self._decoders(), caches, strict=True)):
            last = index == len(caches) - 1
            x = self._layer(layer, cache, x, starts, window, rows if last else window)
        outputs.append(x)
        for step in range(1, num_steps):
            x = self._enter(x, _take(embeddings, (rows + step).clamp(max=embeddings.shape[1] - 1)))
            for layer, cache in zip(self._decoders(), caches, strict=True):
                x = self._next(layer, cache, x, starts, rows, step)
            outputs.append(x)
        return outputs

    def logits(self, output: Tensor) -> Tensor:
        """[..., hidden] -> [..., reduced vocabulary]."""
        result: Tensor = self.head(self.out_norm(output))
        return result

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The parameters as `draft_shapes` names them; `vocab_ids` are the caller's."""
        return {_file_name(name): value.detach().cpu().numpy() for name, value in self.named_parameters()}

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Set the parameters to those of `tensors()`."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(tensors[_file_name(name)]))

    def _decoders(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.layers))

    def _rollout_alone(self, state: Tensor, embeddings: Tensor, rows: Tensor, num_steps: int) -> list[Tensor]:
        outputs = []
        for step in range(num_steps):
            state = self._enter(state, _take(embeddings, (rows + step).clamp(max=embeddings.shape[1] - 1)))
            for layer in self._decoders():
                state = layer.feed_forward(state)
            outputs.append(state)
        return outputs

    def _enter(self, state: Tensor, embedding: Tensor) -> Tensor:
        result: Tensor = state + self.input(
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
        return layer.feed_forward(
            _take(x, rows) + layer.self_attn.output(cache.attend(q, rows, self.config.window))
        )

    def _next(
        self, layer: DecoderLayer, cache: _Cache, x: Tensor, starts: Tensor, rows: Tensor, step: int
    ) -> Tensor:
        """A drafted row: it attends to the true rows up to its own start, and to the drafted ones since."""
        normed = layer.input_layernorm(x)
        cos, sin = self._rope(starts, rows + step)
        cache.drafted.append(layer.self_attn.keys_values(normed, cos, sin))
        q = layer.self_attn.queries(normed, cos, sin)
        return layer.feed_forward(x + layer.self_attn.output(cache.attend(q, rows, self.config.window)))

    def _rope(self, starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        positions = (starts[:, None] + rows).clamp(max=self._cos.shape[0] - 1)
        return self._cos[positions], self._sin[positions]


class _Cache:
    """Keys and values of one layer: of the window, and of the rows drafted since."""

    k: Tensor  # [batch, kv_heads, length, head_dim]
    v: Tensor

    def __init__(self) -> None:
        self.drafted: list[tuple[Tensor, Tensor]] = []  # each [batch, kv_heads, selected, head_dim]

    def attend(self, q: Tensor, rows: Tensor, window: int) -> Tensor:
        """q [batch, heads, selected, head_dim], drafted from `rows` [batch, selected] -> the same shape.

        `window` positions are seen, 0: all.
        """
        keys = torch.arange(self.k.shape[2], device=rows.device)
        distance = rows[:, None, :, None] - keys
        mask = distance >= 0
        if window:
            mask &= distance + len(self.drafted) < window
        if not self.drafted:
            return functional.scaled_dot_product_attention(q, self.k, self.v, mask, enable_gqa=True)
        groups = q.shape[1] // self.k.shape[1]
        batch, kv_heads, length, size = self.k.shape
        grouped = q.view(batch, kv_heads, groups, -1, size) * size**-0.5
        scores = (grouped.flatten(2, 3) @ self.k.transpose(-1, -2)).view(batch, kv_heads, groups, -1, length)
        own = [(grouped * k[:, :, None]).sum(-1, keepdim=True) for k, _ in self.drafted]
        scores = torch.cat([scores.masked_fill(~mask[:, :, None], -torch.inf), *own], dim=-1)
        weights = scores.softmax(-1)
        result: Tensor = (weights[..., :length].flatten(2, 3) @ self.v).view(grouped.shape)
        for index, (_, v) in enumerate(self.drafted):
            result = result + weights[..., length + index, None] * v[:, :, None]
        return result.flatten(1, 2)


def _file_name(name: str) -> str:
    """Name of a parameter in the draft's file."""
    name = name.removesuffix(".weight").replace("feature_norms.", "feature_norm.")
    for long, short in _SHORT_NAMES.items():
        name = name.replace(long, short)
    return name


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of each window: x [batch, length, ...], rows [batch, selected] -> [batch, selected, ...]."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], rows]
