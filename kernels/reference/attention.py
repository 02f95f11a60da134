"""Causal attention of one sequence over its KV blocks (docs/numerics.md, "KV and attention")."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flashlet.kernels.reference.numerics import exp, fma, lane_sum
from flashlet.kernels.reference.quantized import quantize_rows

BLOCK_SIZE = 32  # tokens
SPAN_SIZE = 8  # blocks whose attention is summed up on its own
_TILE = 1 << 15  # scores of one head group at a time


def softmax_scale(head_dim: int) -> float:
    """`1 / sqrt(head_dim)` rounded to binary32."""
    return float(torch.tensor(1.0 / math.sqrt(head_dim), dtype=torch.float32))


def attention_int8(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    start: int,
    window: int = 0,
    first_visible: int = 0,
) -> Tensor:
    """Attention of queries q [n, heads, head_dim] at positions start .. start + n - 1, same shape.

    k and v are int8 [blocks, kv_heads, 32, head_dim] with float32 scales [blocks, kv_heads, 32], the
    sequence's blocks in order; `window` is the number of visible positions, 0 for all, and positions
    before `first_visible` are not visible. Slots that no query may see can hold anything.
    """
    out = torch.empty_like(q)
    for rows, blocks, visible in _tiles(len(q), start, window, len(k), first_visible):
        heads = _by_kv_head(q[rows], k.shape[1])
        quantized, scale = quantize_rows(heads)
        parts = []
        for part, shown in _spans(blocks, visible):
            keys = k[part].transpose(0, 1).flatten(1, 2).double()
            dots = torch.einsum("hrgd,htd->hrgt", quantized.double(), keys).float()
            key_scale = k_scale[part].transpose(0, 1).flatten(1)[:, None, None]
            scores = dots * ((scale * softmax_scale(q.shape[2])).unsqueeze(-1) * key_scale)
            e, largest = _exponentials(scores, shown)
            parts.append((_weighted_int8(e, v[part], v_scale[part], shown), largest, lane_sum(e)))
        out[rows] = _by_row(_combine(parts))
    return out


def attention_fp16(
    q: Tensor, k: Tensor, v: Tensor, start: int, window: int = 0, first_visible: int = 0
) -> Tensor:
    """Like attention_int8, with k and v binary16 [blocks, kv_heads, 32, head_dim] and no scales."""
    out = torch.empty_like(q)
    for rows, blocks, visible in _tiles(len(q), start, window, len(k), first_visible):
        heads = _by_kv_head(q[rows], k.shape[1])
        parts = []
        for part, shown in _spans(blocks, visible):
            keys = k[part].transpose(0, 1).flatten(1, 2).float()[:, None, None]
            scores = torch.zeros(*heads.shape[:3], keys.shape[-2])
            for i in range(q.shape[2]):
                scores = fma(heads[..., i : i + 1], keys[..., i], scores)
            e, largest = _exponentials(scores * softmax_scale(q.shape[2]), shown)
            parts.append((_weighted_fp16(e, v[part], shown), largest, lane_sum(e)))
        out[rows] = _by_row(_combine(parts))
    return out


def _tiles(
    n: int, start: int, window: int, num_blocks: int, first_visible: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split n queries into row tiles: (rows, the blocks they can see, visible [rows, 1, positions]).

    Blocks outside a row's own range add exact zeros, so tiling does not change its result.
    """
    step = max(1, min(BLOCK_SIZE, _TILE // (num_blocks * BLOCK_SIZE)))
    for top in range(0, n, step):
        bottom = min(top + step, n)
        positions = torch.arange(start + top, start + bottom)
        first = max(first_visible, start + top - window + 1 if window else 0) // BLOCK_SIZE
        last = (start + bottom - 1) // BLOCK_SIZE + 1
        slots = torch.arange(first * BLOCK_SIZE, last * BLOCK_SIZE)
        visible = (slots <= positions[:, None]) & (slots >= first_visible)
        if window:
            visible &= slots > positions[:, None] - window
        yield slice(top, bottom), slice(first, last), visible.unsqueeze(1)


def _spans(blocks: slice, visible: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Split a range of blocks where spans end: (blocks, what is visible of them)."""
    start = blocks.start
    while start < blocks.stop:
        stop = min(blocks.stop, (start // SPAN_SIZE + 1) * SPAN_SIZE)
        first, last = (start - blocks.start) * BLOCK_SIZE, (stop - blocks.start) * BLOCK_SIZE
        yield slice(start, stop), visible[..., first:last]
        start = stop


def _combine(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Put spans together: (weighted values, largest score, sum of exponentials) of each, in order."""
    largest = torch.stack([top for _, top, _ in parts]).amax(dim=0)
    total, denominator = torch.zeros_like(parts[0][0]), torch.zeros_like(largest)
    for values, top, part_sum in parts:
        factor = exp(top - largest)
        total = fma(values, factor.unsqueeze(-1), total)
        denominator = fma(part_sum, factor, denominator)
    return total / denominator.unsqueeze(-1)


def _by_kv_head(q: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, head_dim] -> [kv_heads, rows, heads / kv_heads, head_dim]."""
    return torch.unflatten(q, 1, (kv_heads, -1)).transpose(0, 1)


def _by_row(out: Tensor) -> Tensor:
    """Undo _by_kv_head."""
    return out.transpose(0, 1).flatten(1, 2)


def _exponentials(scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """exp(score - largest) [kv_heads, rows, group, positions], 0 where invisible; the largest score."""
    scores = scores.masked_fill(~visible, -torch.inf)
    largest = scores.amax(dim=-1)
    return exp(scores - largest.unsqueeze(-1)).masked_fill(~visible, 0.0), largest


def _weighted_int8(e: Tensor, v: Tensor, v_scale: Tensor, visible: Tensor) -> Tensor:
    """Sum of int8 values v under weights e: [kv_heads, rows, group, head_dim]."""
    weights = (e * v_scale.transpose(0, 1).flatten(1)[:, None, None]).masked_fill(~visible, 0.0)
    quantized, scale = quantize_rows(torch.unflatten(weights, -1, (-1, BLOCK_SIZE)))
    dots = torch.einsum("hrgbt,bhtd->bhrgd", quantized, v.float())  # 32 * 4095 * 127 < 2^24: exact
    total = torch.zeros_like(dots[0])
    for dot, block_scale in zip(dots, scale.unbind(-1), strict=True):
        total = fma(dot, block_scale.unsqueeze(-1), total)
    return total


def _weighted_fp16(e: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Sum of binary16 values v under weights e: [kv_heads, rows, group, head_dim]."""
    values = v.transpose(0, 1).flatten(1, 2).float()[:, None, None]
    total = torch.zeros(*e.shape[:3], v.shape[-1])
    for t in range(e.shape[-1]):
        added = fma(e[..., t : t + 1], values[..., t, :], total)
        total = torch.where(visible[..., t : t + 1], added, total)
    return total
