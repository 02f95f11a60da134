"""Reader of one safetensors file, by the published format: https://huggingface.co/docs/safetensors.

Layout: header length (64-bit little-endian), JSON header, data. The header gives each tensor a dtype, a
shape and its offsets in the data, which the tensors fill without holes or overlap.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flashlet.model.errors import ModelFormatError, UnsupportedModelError

Shape = tuple[int, ...]
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8  # with the next one it bounds the size of numbers computed from a hostile header
MAX_DIMENSION = 1 << 48
PADDING_PREFIX = "_padding."
# BF16 has no NumPy type: its bits are kept in a uint16.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "U8": np.uint8}
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the header; the offsets count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Stored size."""
        return self.data_offsets[1] - self.data_offsets[0]


class SafetensorsFile:
    """A memory-mapped safetensors file; `tensors` and `metadata` come from its validated header."""

    def __init__(self, path: Path) -> None:
        """Map `path` and check its header. Raises ModelFormatError; OSError if the file cannot be opened."""
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            most = min(size - 8, MAX_HEADER_BYTES)
            if not 2 <= length <= most:
                raise ModelFormatError(
                    f"{path.name}: expected a safetensors header of 2 to {max(most, 2)} bytes, found {length}"
                )
            header = stream.read(length)
            self._map: mmap.mmap | None = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.data_start = 8 + length
        self.metadata, self.tensors = _parse_header(path.name, header)
        _check_layout(path.name, self.tensors, size - self.data_start)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as stored: a read-only view of the mapped file, in its NumPy type of `DTYPES`.

        Raises UnsupportedModelError if its dtype is none of these.
        """
        info = self.tensors[name]
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise UnsupportedModelError(f"{self.path.name}: {name}: dtype {info.dtype} is not supported")
        begin, end = info.data_offsets
        raw = self._bytes[self.data_start + begin : self.data_start + end]
        # Data may start at any byte: an unaligned view is legal and copied by whoever converts it.
        return np.ndarray(info.shape, dtype, raw.data) if raw.size else np.empty(info.shape, dtype)

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor as a fresh binary32 array."""
        stored = self.array(name)
        if self.tensors[name].dtype != "BF16":
            return np.array(stored, np.float32)
        result = np.empty(stored.shape, np.float32)
        bits = result.view(np.uint32)
        bits[...] = stored
        bits <<= 16  # BF16 is the upper half of a binary32
        return result

    def drop_pages(self) -> None:
        """Take the file's pages out of this process's memory; arrays read them again where they are used."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last array over it does."""
        self._bytes = np.empty(0, np.uint8)
        self._map = None


def encode_header(
    layout: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str], alignment: int
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Length, JSON header and tensor table of a file whose tensors all start at a multiple of `alignment`.

    `layout` gives (dtype, shape) in file order. As the format allows no holes, gaps are filled by U8
    tensors named with PADDING_PREFIX, which are part of the table.
    """
    table: dict[str, TensorInfo] = {}
    position = 0
    for name, (dtype, shape) in layout.items():
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        table[name] = TensorInfo(dtype, shape, (position, end))
        position = end + -end % alignment
        if position != end:
            table[f"{PADDING_PREFIX}{len(table)}"] = TensorInfo("U8", (position - end,), (end, position))
    text = msgspec.json.encode({"__metadata__": dict(metadata), **table})
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text, table


def _parse_header(file: str, header: bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw_metadata = entries.pop("__metadata__", msgspec.Raw(b"{}"))
        metadata = msgspec.json.decode(raw_metadata, type=dict[str, str])
        tensors = {name: msgspec.json.decode(raw, type=TensorInfo) for name, raw in entries.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            f"{file}: expected a safetensors header, found one that is broken: {error}"
        ) from error
    return metadata, tensors


def _check_layout(file: str, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = info.data_offsets
        if begin != position or end < begin:
            raise ModelFormatError(
                f"{file}: {name}: expected data from byte {position} on, found {begin} to {end}"
            )
        if len(info.shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_DIMENSION for size in info.shape):
            raise ModelFormatError(
                f"{file}: {name}: expected at most {MAX_DIMENSIONS} sizes from 0 to {MAX_DIMENSION}, "
                f"found {str(info.shape)[:80]}"
            )
        if info.dtype not in ITEM_BYTES:
            raise UnsupportedModelError(f"{file}: {name}: dtype {info.dtype} is not supported")
        expected = info.num_elements * ITEM_BYTES[info.dtype]
        if expected != end - begin:
            raise ModelFormatError(
                f"{file}: {name}: expected {expected} bytes for {info.dtype} {list(info.shape)}, "
                f"found {end - begin}"
            )
        position = end
    if position != data_bytes:
        raise ModelFormatError(f"{file}: expected {position} bytes of tensor data, found {data_bytes}")
