"""Integer weights of 8 or 4 bits: one binary16 scale per output and group of 32 inputs (docs/numerics.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashlet.model.errors import ModelFormatError

GROUP = 32  # inputs that share a scale
PANEL = 16  # outputs that lie side by side in the packed layout
MAX_Q = 127
LEAST_Q4 = -8  # of 4 bits; the most is 7
SCALE_BYTES = 2 * PANEL
CELL_BYTES = SCALE_BYTES + PANEL * GROUP  # one panel x one group
CELL_BYTES_4 = SCALE_BYTES + PANEL * GROUP // 2  # of 4-bit weights
CHUNK_ELEMENTS = 1 << 21  # quantized at a time, to keep temporaries in the cache


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Weight [out, in] as q * scale; inputs are padded with zeros to whole groups."""

    q: NDArray[np.int8]  # [out, groups * GROUP]
    scale: NDArray[np.float16]  # [out, groups]; of 4 bits also negative
    in_features: int
    bits: int = 8


def quantize_matrix(weight: NDArray[np.float32], bits: int = 8) -> QuantizedMatrix:
    """Round `weight` [out, in] to groups of integers: q = rint(w / scale), the scale being binary16.

    With 8 bits the scale is max|w| / 127: what came from int8 groups of 32 with such scales (GGUF Q8_0)
    comes out unchanged. With 4 it is the w of the largest magnitude / -8, so that all of -8 .. 7 is used.
    Raises ModelFormatError if a weight is not finite or too large for a binary16 scale.
    """
    num_rows, in_features = weight.shape
    groups = -(-in_features // GROUP)
    q = np.zeros((num_rows, groups * GROUP), np.int8)
    scale = np.empty((num_rows, groups), np.float16)
    chunk = max(1, CHUNK_ELEMENTS // (groups * GROUP))
    for row in range(0, num_rows, chunk):
        part = weight[row : row + chunk]
        if in_features % GROUP:
            part = np.pad(part, ((0, 0), (0, -in_features % GROUP)))
        q[row : row + chunk], scale[row : row + chunk] = _quantize_rows(part, bits)
    return QuantizedMatrix(q, scale, in_features, bits)


def dequantize(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """float32 [out, in]: the weights that the int8 path computes with."""
    num_rows, groups = matrix.scale.shape
    weight = matrix.q.reshape(num_rows, groups, GROUP) * matrix.scale.astype(np.float32)[:, :, None]
    return weight.reshape(num_rows, -1)[:, : matrix.in_features]


def pack_panels(matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    """The layout that the kernels stream: uint8 [panels, groups, cell], outputs padded to whole panels.

    A cell holds 16 binary16 scales, one for each output of the panel, then int8 weights
    [16 pairs of inputs][16 outputs][2 inputs]: 544 bytes. A cell of 4 bits holds the same weights plus 8 in
    288 bytes, those of an even pair of inputs in the low halves, of the next one in the high halves.
    """
    num_rows, groups = matrix.scale.shape
    panels = -(-num_rows // PANEL)
    packed = np.zeros((panels, groups, CELL_BYTES), np.uint8)
    scales = packed.view(np.float16)[:, :, :PANEL]  # [panels, groups, outputs]
    pairs = packed.view(np.int16)[:, :, PANEL:].reshape(panels, groups, GROUP // 2, PANEL)
    q_pairs = matrix.q.view(np.int16).reshape(num_rows, groups, GROUP // 2)
    for first, rows in _panel_runs(num_rows):
        count = -(-rows // PANEL)  # panels
        run, width = slice(first // PANEL, first // PANEL + count), rows // count
        source = slice(first, first + rows)
        scales[run, :, :width] = matrix.scale[source].reshape(count, width, groups).transpose(0, 2, 1)
        pairs[run, :, :, :width] = (
            q_pairs[source].reshape(count, width, groups, GROUP // 2).transpose(0, 2, 3, 1)
        )
    return packed if matrix.bits == 8 else _halved(packed)


def unpack_panels(packed: NDArray[np.uint8], out_features: int, in_features: int) -> QuantizedMatrix:
    """Inverse of `pack_panels` for a matrix [out_features, in_features]."""
    bits = 8 if packed.shape[2] == CELL_BYTES else 4
    if bits == 4:
        packed = _spread(packed)
    panels, groups, _ = packed.shape
    scales = packed.view(np.float16)[:, :, :PANEL]
    pairs = packed.view(np.int16)[:, :, PANEL:].reshape(panels, groups, GROUP // 2, PANEL)
    scale = np.ascontiguousarray(scales.transpose(0, 2, 1)).reshape(panels * PANEL, groups)
    q = (
        np.ascontiguousarray(pairs.transpose(0, 3, 1, 2))
        .view(np.int8)
        .reshape(panels * PANEL, groups * GROUP)
    )
    return QuantizedMatrix(q[:out_features], scale[:out_features], in_features, bits)


def _quantize_rows(part: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    grouped = part.reshape(len(part), -1, GROUP)
    largest, least = grouped.max(axis=2), grouped.min(axis=2)
    if bits == 8:
        exact = np.maximum(largest, -least) / np.float32(MAX_Q)
        low, high = -MAX_Q, MAX_Q
    else:
        exact = np.where(-least >= largest, least, largest) / np.float32(LEAST_Q4)
        low, high = LEAST_Q4, -LEAST_Q4 - 1
    if not (np.abs(exact) <= np.finfo(np.float16).max).all():  # also catches NaN
        raise ModelFormatError(
            f"expected finite weights up to {-low} * 65504 for int{bits}, found {float(np.abs(part).max())}"
        )
    scale = exact.astype(np.float16)
    # A group of zeros, or one so small that its scale rounds to zero, is all zeros whatever it is divided by.
    divisor = np.where(scale == 0, np.float32(np.inf), scale.astype(np.float32))
    scaled = grouped / divisor[:, :, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, low, high, out=scaled)
    return scaled.astype(np.int8).reshape(part.shape), scale


def _panel_runs(num_rows: int) -> list[tuple[int, int]]:
    """(first row, rows) of the whole panels and of the last, incomplete one."""
    whole = num_rows - num_rows % PANEL
    return [run for run in ((0, whole), (whole, num_rows - whole)) if run[1]]


def _halved(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cells of 4-bit weights from int8 cells that hold such weights."""
    pairs = packed[:, :, SCALE_BYTES:].reshape(*packed.shape[:2], GROUP // 4, 2, 2 * PANEL)
    nibbles = pairs.view(np.int8) - LEAST_Q4
    halves = (nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4).view(np.uint8)
    return np.concatenate([packed[:, :, :SCALE_BYTES], halves.reshape(*packed.shape[:2], -1)], axis=2)


def _spread(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverse of `_halved`."""
    halves = packed[:, :, SCALE_BYTES:].reshape(*packed.shape[:2], GROUP // 4, 2 * PANEL)
    nibbles = np.stack([halves & 15, halves >> 4], axis=3).view(np.int8) + LEAST_Q4
    weights = nibbles.astype(np.int8).view(np.uint8).reshape(*packed.shape[:2], -1)
    return np.concatenate([packed[:, :, :SCALE_BYTES], weights], axis=2)
