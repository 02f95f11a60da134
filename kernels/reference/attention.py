"""Causal attention of one sequence over its KV blocks (docs/numerics.md, "KV and attention")."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flashlet.kernels.reference.numerics import exp, fma, lane_sum
from flashlet.kernels.reference.quantized import quantize_rows

BLOCK_SIZE = 32  # tokens
_TILE = 1 << 15  # scores of one head group at a time


def softmax_scale(head_dim: int) -> float:
    """`1 / sqrt(head_dim)` rounded to binary32."""
    return float(torch.tensor(1.0 / math.sqrt(head_dim), dtype=torch.float32))


def attention_int8(
    q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, start: int, window: int = 0
) -> Tensor:
    """Attention of queries q [n, heads, head_dim] at positions start .. start + n - 1, same shape.

    k and v are int8 [blocks, kv_heads, 32, head_dim] with float32 scales [blocks, kv_heads, 32], the
    sequence's blocks in order; `window` is the number of visible positions, 0 for all. Slots that no
    query may see can hold anything.
    """
    out = torch.empty_like(q)
    for rows, blocks, visible in _tiles(len(q), start, window, len(k)):
        heads = _by_kv_head(q[rows], k.shape[1])
        quantized, scale = quantize_rows(heads)
        keys = k[blocks].transpose(0, 1).flatten(1, 2).double()
        dots = torch.einsum("hrgd,htd->hrgt", quantized.double(), keys).float()
        key_scale = k_scale[blocks].transpose(0, 1).flatten(1)[:, None, None]
        scores = dots * ((scale * softmax_scale(q.shape[2])).unsqueeze(-1) * key_scale)
        e = _exponentials(scores, visible)
        out[rows] = _by_row(_weighted_int8(e, v[blocks], v_scale[blocks], visible))
    return out


def attention_fp16(q: Tensor, k: Tensor, v: Tensor, start: int, window: int = 0) -> Tensor:
    """Like attention_int8, with k and v binary16 [blocks, kv_heads, 32, head_dim] and no scales."""
    out = torch.empty_like(q)
    for rows, blocks, visible in _tiles(len(q), start, window, len(k)):
        heads = _by_kv_head(q[rows], k.shape[1])
        keys = k[blocks].transpose(0, 1).flatten(1, 2).float()[:, None, None]
        scores = torch.zeros(*heads.shape[:3], keys.shape[-2])
        for i in range(q.shape[2]):
            scores = fma(heads[..., i : i + 1], keys[..., i], scores)
        e = _exponentials(scores * softmax_scale(q.shape[2]), visible)
        out[rows] = _by_row(_weighted_fp16(e, v[blocks], visible))
    return out


def _tiles(n: int, start: int, window: int, num_blocks: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split n queries into row tiles: (rows, the blocks they can see, visible [rows, 1, positions]).

    Blocks outside a row's own range add exact zeros, so tiling does not change its result.
    """
    step = max(1, min(BLOCK_SIZE, _TILE // (num_blocks * BLOCK_SIZE)))
    for top in range(0, n, step):
        bottom = min(top + step, n)
        positions = torch.arange(start + top, start + bottom)
        first = max(0, start + top - window + 1) // BLOCK_SIZE if window else 0
        last = (start + bottom - 1) // BLOCK_SIZE + 1
        slots = torch.arange(first * BLOCK_SIZE, last * BLOCK_SIZE)
        visible = slots <= positions[:, None]
        if window:
            visible &= slots > positions[:, None] - window
        yield slice(top, bottom), slice(first, last), visible.unsqueeze(1)


def _by_kv_head(q: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, head_dim] -> [kv_heads, rows, heads / kv_heads, head_dim]."""
    return torch.unflatten(q, 1, (kv_heads, -1)).transpose(0, 1)


def _by_row(out: Tensor) -> Tensor:
    """Undo _by_kv_head."""
    return out.transpose(0, 1).flatten(1, 2)


def _exponentials(scores: Tensor, visible: Tensor) -> Tensor:
    """exp(score - largest visible score) [kv_heads, rows, group, positions], 0 where invisible."""
    scores = scores.masked_fill(~visible, -torch.inf)
    return exp(scores - scores.amax(dim=-1, keepdim=True)).masked_fill(~visible, 0.0)


def _weighted_int8(e: Tensor, v: Tensor, v_scale: Tensor, visible: Tensor) -> Tensor:
    """Mean of int8 values v under weights e: [kv_heads, rows, group, head_dim]."""
    weights = (e * v_scale.transpose(0, 1).flatten(1)[:, None, None]).masked_fill(~visible, 0.0)
    quantized, scale = quantize_rows(torch.unflatten(weights, -1, (-1, BLOCK_SIZE)))
    dots = torch.einsum("hrgbt,bhtd->bhrgd", quantized, v.float())  # 32 * 4095 * 127 < 2^24: exact
    total = torch.zeros_like(dots[0])
    for dot, block_scale in zip(dots, scale.unbind(-1), strict=True):
        total = fma(dot, block_scale.unsqueeze(-1), total)
    return total / lane_sum(e).unsqueeze(-1)


def _weighted_fp16(e: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Mean of binary16 values v under weights e: [kv_heads, rows, group, head_dim]."""
    values = v.transpose(0, 1).flatten(1, 2).float()[:, None, None]
    total = torch.zeros(*e.shape[:3], v.shape[-1])
    for t in range(e.shape[-1]):
        added = fma(e[..., t : t + 1], values[..., t, :], total)
        total = torch.where(visible[..., t : t + 1], added, total)
    return total / lane_sum(e).unsqueeze(-1)
