"""The metadata of a GGUF file, checked before anything relies on them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package has a reader too; it
trusts lengths and offsets (a damaged count makes it loop for hours) and takes seconds for a large vocabulary.
A tokenizer needs nothing but metadata, and importing `gguf` would take longer than reading them.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from flashlet.model.errors import ModelFormatError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20  # metadata keys; tensors
MAX_ARRAY_ITEMS = 1 << 22
MAX_STRING_BYTES = 1 << 24
STRING, ARRAY = 8, 9  # metadata types; the others are numbers
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_LENGTH = struct.Struct("<Q")


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Metadata of `path`: int, float, bool, str, list[str], or a read-only array for lists of numbers.

    Raises ModelFormatError for anything out of place, UnsupportedModelError for a big-endian file, OSError
    if the file cannot be read.
    """
    return GgufParser(path).metadata


class GgufParser:
    """Walks a file from the front; every read is checked against its end."""

    def __init__(self, path: Path) -> None:
        """Read what stands before the tensor table. Errors as `read_gguf_metadata`."""
        self._file = path.name
        self._data = _mapped(path)
        self._position = 0
        self._num_tensors, num_keys = self._preamble()
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in self.metadata:
                raise self._error(f"expected distinct metadata keys, found {key!r} twice")
            self.metadata[key] = self._value(key)

    def _preamble(self) -> tuple[int, int]:
        """(number of tensors, number of metadata keys)."""
        magic = self._take(4)
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

    def _value(self, key: str) -> Any:
        kind = self._value_type(key)
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return np.frombuffer(self._take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind]).item()
        kind = self._value_type(key)
        count = self._number("<Q")
        if kind == ARRAY or count > MAX_ARRAY_ITEMS:
            raise self._error(
                f"{key}: expected a flat list of at most {MAX_ARRAY_ITEMS}, found {count} of type {kind}"
            )
        if kind == STRING:
            return self._strings(count)
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _value_type(self, key: str) -> int:
        kind = self._number("<I")
        if kind not in (STRING, ARRAY) and kind not in SCALARS:
            raise self._error(f"{key}: expected a metadata type from 0 to 12, found {kind}")
        return kind

    def _strings(self, count: int) -> list[str]:
        """The next `count` strings, in one loop without calls: vocabularies have hundreds of thousands."""
        data, size, position, length_at = self._data, len(self._data), self._position, _LENGTH.unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                begin = position + _LENGTH.size
                position = begin + length_at(data, position)[0]
                if position > size:
                    break
                strings.append(data[begin:position].decode())
            else:
                self._position = position
                return strings
        except (struct.error, UnicodeDecodeError):
            pass
        return [self._string() for _ in range(count)]  # meets the damage again, and says what it is

    def _string(self) -> str:
        length = self._number("<Q")
        if length > MAX_STRING_BYTES:
            raise self._error(f"expected a string of at most {MAX_STRING_BYTES} bytes, found {length}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._error(f"expected UTF-8, found {error.reason} before byte {self._position}") from error

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise self._error(f"expected a header that goes on to byte {end}, found {len(self._data)} bytes")
        self._position, begin = end, self._position
        return self._data[begin:end]

    def _error(self, message: str) -> ModelFormatError:
        return ModelFormatError(f"{self._file}: {message}")


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The file's content; its slices are copies."""
    with path.open("rb") as stream:
        if not path.stat().st_size:  # cannot be mapped
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
