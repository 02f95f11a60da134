"""Elementwise operations and lane sums in binary32 (docs/numerics.md, "Operations")."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LANES = 16
_COMMON_BITS = 64 - 29  # binary32 lacks the last 29 bits of a binary64 mantissa
_MIDPOINT = -(1 << 63)  # the first of them set, the others clear, shifted to the top
_EXP_CHUNK = 1 << 14  # elements at a time: their binary64 temporaries stay in the cache


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


_LOG2_E, _LN2_HIGH, _LN2_LOW = _float32(1.44269504), _float32(-0.693145752), _float32(-1.42860677e-6)
_EXP_COEFFICIENTS = [_float32(c) for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)]


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a * b + c` of float32 values, broadcast, rounded to float32 once (unless the result is subnormal)."""
    return _fma(a.double(), b.double(), c).float()


def _fma(a: Tensor | float, b: Tensor, c: Tensor | float) -> Tensor:
    """`a * b + c` for float32 values held in binary64, rounded to a float32 value held in binary64.

    The binary64 product is exact. Rounding the sum to binary64 and then to binary32 is wrong only where
    the first rounding lands on the middle of two float32 values; there it is replaced by rounding to odd
    (Boldo and Melquiond 2008).
    """
    product = b * a
    total = product + c
    if _has_midpoint(total):
        at = (total.view(torch.int64) << _COMMON_BITS) == _MIDPOINT
        addend = torch.as_tensor(c, dtype=torch.float64).expand_as(total)
        total[at] = _round_to_odd(product.expand_as(total)[at], addend[at], total[at])
    return total.float().double()


def _has_midpoint(total: Tensor) -> bool:
    """Whether a binary64 value lies halfway between two float32 values."""
    low_bits = total.view(torch.int64) << _COMMON_BITS
    return low_bits.numel() > 0 and int(low_bits.min()) == _MIDPOINT


def _round_to_odd(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The binary64 sum a + b, given rounded to nearest, rounded to odd instead."""
    b_part = total - a
    error = (a - (total - b_part)) + (b - b_part)  # a + b = total + error exactly (Knuth's two-sum)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where((error != 0) & (bits & 1 == 0), bits + step, bits).view(torch.float64)


def lane_sum(x: Tensor) -> Tensor:
    """Sum of float32 x [..., n] over its last dimension in 16 lanes, [...]."""
    chunks = _chunks(x)
    lanes = torch.zeros_like(chunks[0])
    for chunk in chunks:
        lanes = lanes + chunk
    return _fold(lanes)


def lane_sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of float32 x [..., n] over its last dimension in 16 fma lanes, [...]."""
    squares = _chunks(x.double().square())  # exact in binary64
    totals = torch.empty_like(torch.stack(squares))
    lanes = torch.zeros_like(squares[0], dtype=torch.float32)
    for square, total in zip(squares, totals.unbind(), strict=True):
        lanes = torch.add(square, lanes, out=total).float()
    if _has_midpoint(totals):
        lanes = torch.zeros_like(lanes)
        for chunk in _chunks(x):
            lanes = fma(chunk, chunk, lanes)
    return _fold(lanes)


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Pieces [..., 16] of x [..., n] in order, the last one padded with zeros."""
    padded = functional.pad(x, (0, -x.shape[-1] % LANES))
    return tuple(torch.unflatten(padded, -1, (-1, LANES)).unbind(-2))


def _fold(lanes: Tensor) -> Tensor:
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm (Zhang and Sennrich 2019) of x [..., n] with weight [n], float32."""
    mean = lane_sum_of_squares(x) / x.shape[-1]
    # torch's binary32 square root is an ulp off at times; binary64's, rounded, is not.
    scale = 1.0 / torch.sqrt((mean + eps).double()).float()
    return x * scale.unsqueeze(-1) * weight


def exp(x: Tensor) -> Tensor:
    """Exponential of float32 x, clamped to [-87, 88]: Cody-Waite reduction and a polynomial of degree 6."""
    chunks = torch.split(x.flatten().clamp(-87.0, 88.0), _EXP_CHUNK)
    return torch.cat([_exp(chunk) for chunk in chunks]).view_as(x)


def _exp(x: Tensor) -> Tensor:
    n = torch.round(x * _LOG2_E).double()
    r = _fma(_LN2_HIGH, n, x)
    r = _fma(_LN2_LOW, n, r)
    p = torch.full_like(r, _EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        p = _fma(p, r, coefficient)
    power_of_two = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return p.float() * power_of_two


def silu(x: Tensor) -> Tensor:
    """`x / (1 + exp(-x))` of float32 x."""
    return x / (1.0 + exp(-x))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head of x [rows, heads, head_dim] by cos, sin [rows, head_dim / 2]."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([fma(x1, cos, -(x2 * sin)), fma(x2, cos, x1 * sin)], dim=-1)
