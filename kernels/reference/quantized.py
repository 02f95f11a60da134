"""Integer quantization of rows and the product with int8 weights in groups (docs/numerics.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GROUP_SIZE = 32  # inputs that share a weight scale
ACTIVATION_LIMIT = 4095
BYTE_LIMIT = 127  # of activations beside weights of 4 bits
KV_LIMIT = 127
_ZERO_BELOW = 2.0**-100
_TILE = 1 << 16  # float64 accumulators at a time: they stay in the cache
_TILE_ROWS = 32  # enough to use each weight often


def quantize_rows(x: Tensor, limit: int = ACTIVATION_LIMIT) -> tuple[Tensor, Tensor]:
    """Quantize each last-dimension row of float32 x [..., n] symmetrically to -limit .. limit.

    Returns whole numbers as float32 [..., n] and scales [...]; both are 0 where no |x| reaches 2^-100.
    """
    largest = x.abs().amax(dim=-1)
    zero = largest < _ZERO_BELOW
    # limit / tensor would multiply by the reciprocal and round twice.
    inverse = torch.full_like(largest, limit) / largest.masked_fill(zero, 1.0)
    q = torch.round(x * inverse.unsqueeze(-1))
    return q.masked_fill(zero.unsqueeze(-1), 0.0), (largest / limit).masked_fill(zero, 0.0)


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize key or value heads [..., head_dim] to (int8 [..., head_dim], float32 scales [...])."""
    q, scale = quantize_rows(x, KV_LIMIT)
    return q.to(torch.int8), scale


@dataclass(frozen=True)
class GroupedMatrix:
    """Weights of 8 or 4 bits of a linear layer, laid out for one matmul per group of inputs."""

    weight: Tensor  # [groups, 32, outputs], whole numbers -127 .. 127 as float32
    scale: Tensor  # [groups, outputs], binary16 values as float64
    input_limit: int = ACTIVATION_LIMIT  # largest integer of the rows that it is multiplied with

    @classmethod
    def from_int8(cls, weight: Tensor, scale: Tensor, bits: int = 8) -> GroupedMatrix:
        """From int8 weight [outputs, inputs] and binary16 scale [outputs, ceil(inputs / 32)].

        `bits`: 8, or 4 if the weights are -8 .. 7 and rows are to be quantized to 8 bits.
        """
        weight = _in_groups(weight).permute(1, 2, 0)
        limit = ACTIVATION_LIMIT if bits == 8 else BYTE_LIMIT
        return cls(weight.float().contiguous(), scale.T.double().contiguous(), limit)

    def rows(self, outputs: Tensor) -> Tensor:
        """Dequantized weights of the given outputs [n], float32 [n, 32 * groups]."""
        q = self.weight[:, :, outputs] * self.scale[:, None, outputs].float()
        return q.permute(2, 0, 1).flatten(1)


def linear_int8(x: Tensor, matrix: GroupedMatrix, bias: Tensor | None = None) -> Tensor:
    """Product of float32 x [rows, inputs], quantized for `matrix`, with it: float32 [rows, outputs]."""
    q, scale = quantize_rows(x, matrix.input_limit)
    q = _in_groups(q).transpose(0, 1).contiguous()
    result = torch.empty(len(x), matrix.scale.shape[1])
    rows = min(len(x), _TILE_ROWS)
    columns = _TILE // max(1, rows)
    for top in range(0, len(x), rows):
        for left in range(0, result.shape[1], columns):
            tile = slice(top, top + rows), slice(left, left + columns)
            result[tile] = _accumulate(q[:, tile[0]], matrix.weight[:, :, tile[1]], matrix.scale[:, tile[1]])
    result *= scale.unsqueeze(1)
    return result if bias is None else result + bias


def _in_groups(x: Tensor) -> Tensor:
    """[rows, inputs] -> [rows, groups, 32], padded with zeros."""
    padded = functional.pad(x, (0, -x.shape[1] % GROUP_SIZE))
    return padded.view(len(x), -1, GROUP_SIZE)


def _accumulate(q: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Sum over groups of (q [groups, rows, 32] @ weight [groups, 32, n]) * scale [groups, n], [rows, n].

    The dot product (24 bits) times its scale (11 bits) is exact in binary64, and so is the sum unless the
    terms lie more than 2^18 apart. Only then can the two roundings, to 53 and to 24 bits, differ from one,
    and only if 28 bits of the smaller term match a midpoint: too rare for a check in this loop.
    """
    total = torch.zeros(q.shape[1], weight.shape[2], dtype=torch.float64)
    rounded = torch.empty_like(total, dtype=torch.float32)
    product = torch.empty_like(total)
    for group in range(len(q)):
        product.copy_(torch.matmul(q[group], weight[group], out=rounded))
        total.addcmul_(product, scale[group])
        total.copy_(rounded.copy_(total))
    return rounded
