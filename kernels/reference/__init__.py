"""Plain-torch definition of every operation in docs/numerics.md: the oracle for faster kernels.

Everything here agrees with the text bit for bit on the CPU, and a row's result never depends on the
other rows of the call. Exact integer sums may go through matmul, whose order does not matter to them.
"""

from flashlet.kernels.reference.attention import (
    BLOCK_SIZE,
    attention_fp16,
    attention_int8,
    softmax_scale,
)
from flashlet.kernels.reference.numerics import exp, fma, lane_sum, lane_sum_of_squares, rms_norm, rope, silu
from flashlet.kernels.reference.quantized import (
    GROUP_SIZE,
    GroupedMatrix,
    linear_int8,
    quantize_kv,
    quantize_rows,
)

__all__ = [
    "BLOCK_SIZE",
    "GROUP_SIZE",
    "GroupedMatrix",
    "attention_fp16",
    "attention_int8",
    "exp",
    "fma",
    "lane_sum",
    "lane_sum_of_squares",
    "linear_int8",
    "quantize_kv",
    "quantize_rows",
    "rms_norm",
    "rope",
    "silu",
    "softmax_scale",
]
