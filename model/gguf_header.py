"""The header of a GGUF file: metadata and tensor table, checked before anything relies on them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package has a reader too; it
trusts lengths and offsets (a damaged count makes it loop for hours) and takes seconds for a large vocabulary.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from flashlet.model.errors import ModelFormatError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20  # metadata keys; tensors
MAX_ARRAY_ITEMS = 1 << 22
MAX_STRING_BYTES = 1 << 24
MAX_DIMENSIONS = 4
SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table; `offset` counts from the start of the file, `shape` is [out, in]."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata values are int, float, bool, str, list[str], or a read-only array for lists of numbers."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse and check the header of `path`; the tensors' data stay untouched.

    Raises ModelFormatError for anything out of place, UnsupportedModelError for a big-endian file or an
    unknown tensor type, OSError if the file cannot be read.
    """
    size = path.stat().st_size
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    return _HeaderParser(path.name, data).parse()


class _HeaderParser:
    """Walks the header once; every read is checked against the end of the file."""

    def __init__(self, file: str, data: NDArray[np.uint8]) -> None:
        self._file = file
        self._data = data.data
        self._position = 0

    def parse(self) -> GgufHeader:
        num_tensors, num_keys = self._preamble()
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._error(f"expected distinct metadata keys, found {key!r} twice")
            metadata[key] = self._value(key, self._number("<I"))
        rows = [self._tensor_row() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._error(f"expected a general.alignment that is a power of two, found {alignment}")
        data_start = -(-self._position // alignment) * alignment
        return GgufHeader(metadata, self._tensors(rows, data_start, alignment))

    def _preamble(self) -> tuple[int, int]:
        magic = bytes(self._take(4))
        if magic != MAGIC:
            raise self._error(f"expected the magic {MAGIC!r}, found {magic!r}")
        version = self._number("<I")
        if version not in VERSIONS:
            if version and version & 0xFFFF == 0:
                raise UnsupportedModelError(f"{self._file}: big-endian GGUF files are not supported")
            raise self._error(f"expected GGUF version 2 or 3, found {version}")
        num_tensors, num_keys = self._number("<Q"), self._number("<Q")
        for name, count in (("tensors", num_tensors), ("metadata keys", num_keys)):
            if count > MAX_ENTRIES:
                raise self._error(f"expected at most {MAX_ENTRIES} {name}, found {count}")
        return num_tensors, num_keys

    def _value(self, key: str, code: int) -> Any:
        kind = self._value_type(key, code)
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return np.frombuffer(self._take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind]).item()
        kind = self._value_type(key, self._number("<I"))
        count = self._number("<Q")
        if kind == GGUFValueType.ARRAY or count > MAX_ARRAY_ITEMS:
            raise self._error(
                f"{key}: expected a flat list of at most {MAX_ARRAY_ITEMS}, found {count} {kind.name}"
            )
        if kind == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _value_type(self, key: str, code: int) -> GGUFValueType:
        try:
            return GGUFValueType(code)
        except ValueError:
            raise self._error(f"{key}: expected a metadata type from 0 to 12, found {code}") from None

    def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type code, offset in the data)."""
        name = self._string()
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._error(f"{name}: expected 1 to {MAX_DIMENSIONS} dimensions, found {num_dimensions}")
        fastest_first = [self._number("<Q") for _ in range(num_dimensions)]
        return name, tuple(reversed(fastest_first)), self._number("<I"), self._number("<Q")

    def _tensors(
        self, rows: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        end = data_start
        for name, shape, code, offset in sorted(rows, key=lambda row: row[3]):
            tensor = self._tensor(name, shape, code, data_start + offset)
            if name in tensors:
                raise self._error(f"expected distinct tensor names, found {name!r} twice")
            if offset % alignment:
                raise self._error(
                    f"{name}: expected an offset that is a multiple of {alignment}, found {offset}"
                )
            if tensor.offset < end:
                raise self._error(
                    f"{name}: expected data from byte {end} on, found them from {tensor.offset} on"
                )
            end = tensor.offset + tensor.num_bytes
            if end > len(self._data):
                raise self._error(
                    f"{name}: expected data up to byte {end}, found a file of {len(self._data)} bytes"
                )
            tensors[name] = tensor
        return tensors

    def _tensor(self, name: str, shape: tuple[int, ...], code: int, offset: int) -> GgufTensor:
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise UnsupportedModelError(
                f"{self._file}: {name}: tensor type {code} is not supported"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block or min(shape) < 1:
            raise self._error(
                f"{name}: expected rows of a multiple of {block} numbers ({kind.name}), "
                f"found shape {list(shape)}"
            )
        return GgufTensor(name, kind, shape, offset, math.prod(shape) // block * block_bytes)

    def _string(self) -> str:
        length = self._number("<Q")
        if length > MAX_STRING_BYTES:
            raise self._error(f"expected a string of at most {MAX_STRING_BYTES} bytes, found {length}")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"expected UTF-8, found {error.reason} before byte {self._position}") from error

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _take(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise self._error(f"expected a header that goes on to byte {end}, found {len(self._data)} bytes")
        self._position, begin = end, self._position
        return self._data[begin:end]

    def _error(self, message: str) -> ModelFormatError:
        return ModelFormatError(f"{self._file}: {message}")
