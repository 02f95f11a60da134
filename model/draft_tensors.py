"""The trained tensors of a draft file, so that training can go on with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashlet.model.draft import DraftConfig, draft_shapes
from flashlet.model.quantize import dequantize, unpack_panels


def draft_tensors(config: DraftConfig, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """float32 tensors of `draft_shapes`, but for `vocab_ids`, out of the arrays of `load_draft`.

    Saving them again gives the same arrays.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in draft_shapes(config).items():
        prefix, _, part = name.rpartition(".")
        if name == "vocab_ids":
            continue
        if len(shape) == 1:
            tensors[name] = arrays[name].copy()
        elif part in ("q", "k", "v"):
            tensors[name] = _rows_of_qkv(config, arrays[prefix + ".qkv"], part)
        elif part in ("gate", "up"):
            panels = arrays[prefix + ".gate_up"][part == "up" :: 2]
            tensors[name] = dequantize(unpack_panels(np.ascontiguousarray(panels), *shape))
        else:
            tensors[name] = dequantize(unpack_panels(arrays[name], *shape))
    return tensors


def _rows_of_qkv(config: DraftConfig, packed: NDArray[np.uint8], part: str) -> NDArray[np.float32]:
    queries, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    whole = dequantize(unpack_panels(packed, queries + 2 * kv, config.hidden_size))
    first, last = {"q": (0, queries), "k": (queries, queries + kv), "v": (queries + kv, queries + 2 * kv)}[
        part
    ]
    return whole[first:last]
