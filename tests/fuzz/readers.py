"""What the fuzzer feeds: each reader takes the bytes of a file and may raise FlashletError, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flashlet.model import gguf, weight_cache
from flashlet.model.errors import FlashletError
from flashlet.model.parameters import parameter_shapes
from flashlet.model.safetensors import SafetensorsFile

Reader = Callable[[bytes], None]


def make_reader(name: str, folder: Path) -> Reader:
    """The reader `name`, "gguf" or "cache", over a file in `folder`."""
    path = folder / {"gguf": "fuzz.gguf", "cache": "fuzz.safetensors"}[name]
    read = {"gguf": _read_gguf, "cache": _read_cache}[name]

    def reader(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except FlashletError as error:
            assert str(error)

    return reader


def _read_gguf(path: Path) -> None:
    source = gguf.GgufWeights(path)
    for name, shape in parameter_shapes(source.config).items():
        source.tensor(name, shape)
    source.formats()
    source.close()


def _read_cache(path: Path) -> None:
    """As a cache file first: damage there must never raise, it only means that the file is made again."""
    weight_cache._open(path, "identity")
    file = SafetensorsFile(path)
    for name in file.tensors:
        file.float32(name)
    if weights := weight_cache._open(path, file.metadata.get("source", "")):
        weight_cache.verify(weights)
    file.close()
