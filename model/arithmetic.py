"""The two ways the torch model computes: exact int8 and plain floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flashlet.kernels import reference
from flashlet.kernels.reference import GroupedMatrix
from flashlet.model.kv_pool import KvBlocks

Matrix = GroupedMatrix | Tensor  # Tensor: float32 [outputs, inputs]


@dataclass(frozen=True)
class Linear:
    """One matrix product with an optional bias [outputs]."""

    matrix: Matrix
    bias: Tensor | None = None


class Arithmetic(Protocol):
    """The operations of a transformer; every tensor is float32, one row per token."""

    def embed(self, token_ids: Tensor, table: Matrix, hidden_size: int) -> Tensor:
        """Rows of the embedding table, [rows, hidden_size]."""

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """[rows, inputs] -> [rows, outputs]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalize the last dimension."""

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [rows, heads, head_dim] by cos, sin [rows, head_dim / 2]."""

    def silu(self, x: Tensor) -> Tensor:
        """`x * sigmoid(x)`."""

    def attention(self, q: Tensor, kv: KvBlocks, start: int, window: int, first_visible: int) -> Tensor:
        """Causal attention of q [n, heads, head_dim] at positions start .. start + n - 1.

        Visible are the last `window` positions (0: all), but none before `first_visible`.
        """


class ExactArithmetic:
    """docs/numerics.md on the CPU: a row's bits depend on its own sequence only."""

    def embed(self, token_ids: Tensor, table: Matrix, hidden_size: int) -> Tensor:
        """See Arithmetic."""
        assert isinstance(table, GroupedMatrix)
        return table.rows(token_ids)[:, :hidden_size]

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """See Arithmetic."""
        assert isinstance(linear.matrix, GroupedMatrix)
        return reference.linear_int8(x, linear.matrix, linear.bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Arithmetic."""
        return reference.rms_norm(x, weight, eps)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See Arithmetic."""
        return reference.rope(x, cos, sin)

    def silu(self, x: Tensor) -> Tensor:
        """See Arithmetic."""
        return reference.silu(x)

    def attention(self, q: Tensor, kv: KvBlocks, start: int, window: int, first_visible: int) -> Tensor:
        """See Arithmetic; int8 or binary16 keys and values."""
        if kv.key_scales is None or kv.value_scales is None:
            return reference.attention_fp16(q, kv.keys, kv.values, start, window, first_visible)
        return reference.attention_int8(
            q, kv.keys, kv.key_scales, kv.values, kv.value_scales, start, window, first_visible
        )


class FloatArithmetic:
    """Torch's own float32 kernels, on any device.

    Their summation order may change with the number of rows, so equal rows agree to rounding only:
    bit-exact invariance is a property of ExactArithmetic.
    """

    def embed(self, token_ids: Tensor, table: Matrix, hidden_size: int) -> Tensor:
        """See Arithmetic."""
        assert isinstance(table, Tensor)
        return functional.embedding(token_ids, table)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """See Arithmetic."""
        assert isinstance(linear.matrix, Tensor)
        return functional.linear(x, linear.matrix, linear.bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Arithmetic."""
        return functional.rms_norm(x, weight.shape, weight, eps)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See Arithmetic."""
        x1, x2 = x.chunk(2, dim=-1)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)

    def silu(self, x: Tensor) -> Tensor:
        """See Arithmetic."""
        return functional.silu(x)

    def attention(self, q: Tensor, kv: KvBlocks, start: int, window: int, first_visible: int) -> Tensor:
        """See Arithmetic; keys and values of any type."""
        context = start + len(q)
        positions = torch.arange(context, device=q.device)
        visible = (positions <= positions[start:, None]) & (positions >= first_visible)
        if window:
            visible &= positions > positions[start:, None] - window
        keys = _contiguous(kv.keys, kv.key_scales)[:, :context]
        values = _contiguous(kv.values, kv.value_scales)[:, :context]
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=visible, enable_gqa=True
        )
        return out[0].transpose(0, 1)


def _contiguous(blocks: Tensor, scales: Tensor | None) -> Tensor:
    """[blocks, kv_heads, 32, head_dim] -> float32 [kv_heads, positions, head_dim]."""
    rows = blocks.float() if scales is None else blocks.float() * scales.unsqueeze(-1)
    return rows.transpose(0, 1).flatten(1, 2)


def float_kernels(device: str) -> str:
    """What decides how float kernels round: torch, and the device that runs them."""
    if device == "cpu":
        return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__} {torch.cuda.get_device_name(device)}"
