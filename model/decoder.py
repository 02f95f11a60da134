"""Decoder layers that can be trained: whole windows of tokens at a time, plain binary32, gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.config import ModelConfig


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self._eps)


class Attention(nn.Module):
    """Projections of grouped-query attention; the scores are the caller's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.qkv_bias
        self.q_proj = nn.Linear(hidden, config.query_size, bias=bias)
        self.k_proj = nn.Linear(hidden, config.kv_size, bias=bias)
        self.v_proj = nn.Linear(hidden, config.kv_size, bias=bias)
        self.o_proj = nn.Linear(config.query_size, hidden, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps)
        self._qk_norm = config.qk_norm

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, rows, hidden] -> rotated [batch, heads, rows, head_dim]."""
        q = self._heads(self.q_proj(x))
        return rotate(self.q_norm(q) if self._qk_norm else q, cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, rows, hidden] -> rotated keys and values, each [batch, kv_heads, rows, head_dim]."""
        k = self._heads(self.k_proj(x))
        return rotate(self.k_norm(k) if self._qk_norm else k, cos, sin), self._heads(self.v_proj(x))

    def output(self, heads: Tensor) -> Tensor:
        """[batch, heads, rows, head_dim] -> [batch, rows, hidden]."""
        result: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self._head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Gated SiLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class DecoderLayer(nn.Module):
    """One layer; its parameters have their Hugging Face names."""

    def __init__(self, config: ModelConfig, attention: bool = True) -> None:
        """Without `attention` only `feed_forward` works."""
        super().__init__()
        if attention:
            self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
            self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """x [batch, rows, hidden], cos and sin [batch or 1, rows, head_dim / 2]; no mask: causal."""
        normed = self.input_layernorm(x)
        q = self.self_attn.queries(normed, cos, sin)
        k, v = self.self_attn.keys_values(normed, cos, sin)
        heads = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.feed_forward(x + self.self_attn.output(heads))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half of the layer, residual included."""
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head: x [batch, heads, rows, head_dim], cos, sin [batch or 1, rows, half]."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
