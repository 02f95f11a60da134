"""Where weights come from: one interface over GGUF files and Hugging Face folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ModelFormatError, ModelNotFoundError

HEAD_BYTES = 1 << 16
CHUNK_BYTES = 1 << 24
CONFIG_FILES = {"config.json", "generation_config.json", "model.safetensors.index.json"}


class WeightSource(Protocol):
    """The parameters of one model, read lazily, tensor by tensor, under their Hugging Face names."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""

    @property
    def identity(self) -> str:
        """Hex digest that changes when the files do; see `source_identity`."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The parameter `name` in binary32, C-contiguous; matrices are [out, in].

        Raises ModelFormatError if it is missing, has another shape or holds numbers that are not finite,
        UnsupportedModelError if its storage type cannot be read.
        """

    def has(self, name: str) -> bool:
        """Whether the source stores the parameter `name`."""

    def formats(self) -> dict[str, tuple[int, int]]:
        """(parameters, bytes) for each storage type, largest first."""

    def close(self) -> None:
        """Drop the file mappings; no tensor can be read afterwards."""


def open_weights(path: Path) -> WeightSource:
    """Open a .gguf file or a Hugging Face folder, and check that every parameter is there.

    Raises ModelNotFoundError, ModelFormatError or UnsupportedModelError.
    """
    if path.suffix == ".safetensors" and path.is_file():
        raise ModelFormatError(f"{path}: expected the folder with config.json, found one of its files")
    try:
        if path.is_dir():
            from flashlet.model.hf_folder import HuggingFaceWeights

            return HuggingFaceWeights(path)
        from flashlet.model.gguf import GgufWeights

        return GgufWeights(path)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error


def source_identity(path: Path) -> str:
    """SHA-256 over name, size, mtime and first 64 KiB of every file that defines the weights.

    Cheap on purpose: no tensor is read. Raises ModelNotFoundError if `path` cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in _weight_files(path):
            status = file.stat()
            digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(HEAD_BYTES))
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def source_hash(path: Path) -> str:
    """SHA-256 of every file that defines the weights, wherever they lie. Raises ModelNotFoundError."""
    digest = hashlib.sha256()
    try:
        for file in _weight_files(path):
            digest.update(f"{file.name if path.is_dir() else ''}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def add_format(formats: dict[str, tuple[int, int]], storage_type: str, parameters: int, size: int) -> None:
    """Count one tensor of `size` bytes into a result of `WeightSource.formats`."""
    count, total = formats.get(storage_type, (0, 0))
    formats[storage_type] = (count + parameters, total + size)


def check_finite(array: NDArray[np.float32], name: str, where: str) -> None:
    """Raise ModelFormatError if `array` holds an infinity or a NaN; minimum and maximum pass a NaN on."""
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ModelFormatError(f"{where}: {name}: expected finite numbers, found infinity or NaN")


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(
            file for file in path.iterdir() if file.suffix == ".safetensors" or file.name in CONFIG_FILES
        )
    return [path]
