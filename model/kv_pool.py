"""The KV pool of the torch executor: every block of every layer, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashlet.kernels.reference import BLOCK_SIZE, quantize_kv
from flashlet.model.config import ModelConfig
from flashlet.model.errors import OutOfMemoryError
from flashlet.model.executor import KvDtype

_DTYPES = {"int8": torch.int8, "fp16": torch.float16, "fp32": torch.float32}
_MIN_BLOCKS = 2  # one to share, one to write


@dataclass(frozen=True)
class KvBlocks:
    """Keys and values of one sequence in one layer, block by block as they are stored."""

    keys: Tensor  # [blocks, kv_heads, 32, head_dim]
    values: Tensor  # likewise
    key_scales: Tensor | None  # float32 [blocks, kv_heads, 32] for int8, else None
    value_scales: Tensor | None


class KvPool:
    """Fixed number of blocks of 32 tokens, addressed by block id."""

    def __init__(self, config: ModelConfig, dtype: KvDtype, num_blocks: int, device: torch.device) -> None:
        """Raises OutOfMemoryError if there is not so much memory."""
        self.num_blocks = num_blocks
        slots = (config.num_layers, self.num_blocks, config.num_kv_heads, BLOCK_SIZE)
        try:
            self._keys, self._values = (
                _zeros((*slots, config.head_dim), _DTYPES[dtype], device) for _ in range(2)
            )
            self._scales = [_zeros(slots, torch.float32, device) for _ in range(2)] if dtype == "int8" else []
        except (MemoryError, RuntimeError) as error:
            size = num_blocks * block_bytes(config, dtype)
            raise OutOfMemoryError(f"KV cache: {size:,} bytes are not available on {device}") from error

    def store(self, layer: int, blocks: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write float32 keys and values [n, kv_heads, head_dim] to slot slots[i] of block blocks[i]."""
        for i, (pool, rows) in enumerate(((self._keys, keys), (self._values, values))):
            if self._scales:
                quantized, scale = quantize_kv(rows)
                pool[layer, blocks, :, slots] = quantized
                self._scales[i][layer, blocks, :, slots] = scale
            else:
                pool[layer, blocks, :, slots] = rows.to(pool.dtype)

    def copy(self, source: int, target: int) -> None:
        """Make block `target` equal to block `source`, in every layer."""
        for pool in (self._keys, self._values, *self._scales):
            pool[:, target] = pool[:, source]

    def read(self, layer: int, block_table: Tensor) -> KvBlocks:
        """Copy the blocks of `block_table` [blocks] in its order."""
        index = layer, block_table
        if not self._scales:
            return KvBlocks(self._keys[index], self._values[index], None, None)
        key_scales, value_scales = self._scales
        return KvBlocks(self._keys[index], self._values[index], key_scales[index], value_scales[index])


def blocks_in(num_bytes: int, bytes_per_block: int) -> int:
    """How many blocks fit; raises OutOfMemoryError if that is fewer than two."""
    if num_bytes < _MIN_BLOCKS * bytes_per_block:
        raise OutOfMemoryError(
            f"KV cache: expected at least {_MIN_BLOCKS * bytes_per_block:,} bytes "
            f"({_MIN_BLOCKS} blocks of {BLOCK_SIZE} tokens), got {num_bytes:,}"
        )
    return num_bytes // bytes_per_block


def block_bytes(config: ModelConfig, dtype: KvDtype) -> int:
    """Bytes of one block over all layers, keys and values, with the scales of int8."""
    scale_bytes = 4 if dtype == "int8" else 0
    vector_bytes = config.head_dim * _DTYPES[dtype].itemsize + scale_bytes
    return 2 * config.num_layers * config.num_kv_heads * BLOCK_SIZE * vector_bytes


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    zeros = np.zeros(size, np.uint8)  # unlike torch's, these take memory only when they are touched
    return torch.from_numpy(zeros).view(dtype).view(shape)
