"""Quantized weights on disk, so that only the first start of a model quantizes (docs/weight-cache.md)."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ChecksumError, FlashletError, ModelFormatError, UnsupportedModelError
from flashlet.model.int8_layout import int8_arrays, int8_layout
from flashlet.model.quantize import GROUP
from flashlet.model.safetensors import PADDING_PREFIX, SafetensorsFile, encode_header
from flashlet.model.weights import WeightSource, open_weights, source_identity

FORMAT = "flashlet-int8"
VERSION = 1  # raise it whenever the arrays of the same source change
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
CHUNK_BYTES = 1 << 24

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Int8Weights:
    """A quantized model: read-only arrays over the mapped cache file, named as in docs/weight-cache.md."""

    config: ModelConfig
    arrays: Mapping[str, NDArray[Any]]
    path: Path
    file: SafetensorsFile

    @property
    def sha256(self) -> str:
        """Hash of all arrays, as they were written."""
        return self.file.metadata.get("sha256", "")


def load_int8(
    source_path: Path, cache_dir: Path | None = None, progress: Progress | None = None
) -> Int8Weights:
    """The int8 weights of the model at `source_path`, quantized now unless the cache has them.

    `cache_dir` defaults to `default_cache_dir()`; `progress` is told (array name, fraction done) while
    quantizing. Raises what `open_weights` raises, and FlashletError if the cache cannot be written.
    """
    source_path = source_path.resolve()
    path, identity = _location(source_path, cache_dir)
    report = progress or _no_progress
    try:
        cached = _open(path, identity)
        if cached:
            return cached
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent, report):
            return _open(path, identity) or _build(source_path, path, report)
    except OSError as error:
        raise FlashletError(
            f"cannot write the weight cache {path}: {error}; FLASHLET_CACHE can name another folder"
        ) from error


def find_int8(source_path: Path, cache_dir: Path | None = None) -> Int8Weights | None:
    """The int8 weights of the model at `source_path` if the cache has them; writes nothing.

    Raises what reading the identity of the source raises.
    """
    return _open(*_location(source_path.resolve(), cache_dir))


def verify(weights: Int8Weights) -> None:
    """Read the whole cache file and compare its data with their checksum. Raises ChecksumError."""
    digest = hashlib.sha256()
    with weights.path.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != weights.sha256:
        raise ChecksumError(f"{weights.path}: expected SHA-256 {weights.sha256}, found {digest.hexdigest()}")


def default_cache_dir() -> Path:
    """$FLASHLET_CACHE, or `flashlet` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("FLASHLET_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flashlet"


def _location(source_path: Path, cache_dir: Path | None) -> tuple[Path, str]:
    """Where the weights of this source are cached, and the identity of the source."""
    identity = source_identity(source_path)
    key = hashlib.sha256(f"{FORMAT} {VERSION} {identity}".encode()).hexdigest()[:24]
    folder = (cache_dir or default_cache_dir()) / "int8"
    return folder / f"{source_path.stem[:80]}-{key}.safetensors", identity


def _open(path: Path, identity: str) -> Int8Weights | None:
    """The cache file if it is there, whole, and made from this source by this version."""
    try:
        file = SafetensorsFile(path)
        config = msgspec.json.decode(file.metadata.get("config", ""), type=ModelConfig)
    except (FileNotFoundError, ModelFormatError, UnsupportedModelError, msgspec.DecodeError):
        return None
    found = {
        name: (info.dtype, info.shape)
        for name, info in file.tensors.items()
        if not name.startswith(PADDING_PREFIX)
    }
    if not _metadata(config, identity).items() <= file.metadata.items() or found != int8_layout(config):
        return None
    arrays = {name: file.array(name) for name in found}
    return Int8Weights(config, arrays, path, file)


def _build(source_path: Path, path: Path, report: Progress) -> Int8Weights:
    """Write to a temporary file, check it, rename it. The caller holds the lock of the folder."""
    for leftover in path.parent.glob("*.tmp"):  # of a process that was killed
        leftover.unlink()
    temporary = path.with_suffix(".tmp")
    source = open_weights(source_path)
    try:
        with temporary.open("xb") as stream:
            _write(stream, source, report)
            stream.flush()
            os.fsync(stream.fileno())
        written = _open(temporary, source.identity)
        if written is None:
            raise ChecksumError(f"{temporary}: the cache file does not read back as it was written")
        verify(written)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        source.close()
        temporary.unlink(missing_ok=True)
    return replace(written, path=path)


def _write(stream: BinaryIO, source: WeightSource, report: Progress) -> None:
    layout = int8_layout(source.config)
    metadata = _metadata(source.config, source.identity)
    digest = hashlib.sha256()
    # The checksum is known last and stands first: its place is kept by one of the same length.
    header, table = encode_header(layout, metadata | {"sha256": digest.hexdigest()}, ALIGNMENT)
    stream.write(header)
    total = max(info.data_offsets[1] for info in table.values())
    for name, array in int8_arrays(source):
        info = table[name]
        assert (array.shape, array.nbytes) == (info.shape, info.num_bytes), name
        padding = bytes(-info.num_bytes % ALIGNMENT)
        for part in (array.data.cast("B"), padding):
            digest.update(part)
            stream.write(part)
        report(name, info.data_offsets[1] / total)
    header, _ = encode_header(layout, metadata | {"sha256": digest.hexdigest()}, ALIGNMENT)
    stream.seek(0)
    stream.write(header)


def _metadata(config: ModelConfig, identity: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "group": str(GROUP),
        "source": identity,
        "config": msgspec.json.encode(config).decode(),
    }


@contextmanager
def _locked(folder: Path, report: Progress) -> Iterator[None]:
    """Hold the folder for one builder; the lock ends with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that fills the cache", 0.0)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_progress(name: str, fraction: float) -> None:
    """Progress that nobody watches."""
