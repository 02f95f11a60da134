"""The header of a GGUF file: metadata and tensor table, checked before anything relies on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from flashlet.model.errors import UnsupportedModelError
from flashlet.model.gguf_metadata import GgufParser

MAX_DIMENSIONS = 4


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
    """Metadata as `read_gguf_metadata` returns them, and the tensors in the order of their data."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse and check the header of `path`; the tensors' data stay untouched.

    Raises ModelFormatError for anything out of place, UnsupportedModelError for a big-endian file or an
    unknown tensor type, OSError if the file cannot be read.
    """
    return _HeaderParser(path).header()


class _HeaderParser(GgufParser):
    """Goes on with the tensor table."""

    def header(self) -> GgufHeader:
        """Read the table; call it once."""
        rows = [self._tensor_row() for _ in range(self._num_tensors)]
        alignment = self.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._error(f"expected a general.alignment that is a power of two, found {alignment}")
        data_start = -(-self._position // alignment) * alignment
        return GgufHeader(self.metadata, self._tensors(rows, data_start, alignment))

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
