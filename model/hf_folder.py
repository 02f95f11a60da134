"""Weights of a Hugging Face folder: config.json and one or more safetensors files. Never pickle."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.hf_config import read_hf_config, read_json
from flashlet.model.parameters import check_parameters, check_shape
from flashlet.model.safetensors import SafetensorsFile
from flashlet.model.weights import add_format, check_finite, source_identity

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Old checkpoints store the inverse frequencies, which config.json already determines.
DERIVED_SUFFIX = ".rotary_emb.inv_freq"


class ShardIndex(msgspec.Struct):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


class HuggingFaceWeights:
    """WeightSource over the safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Open `folder` and check its tensors against config.json. Errors as `open_weights`."""
        self.config: ModelConfig = read_hf_config(folder)
        self.identity: str = source_identity(folder)
        self._name = folder.name
        self._files = _open_files(folder)
        found = {
            name: self._files[name].tensors[name].shape
            for name in self._files
            if not name.endswith(DERIVED_SUFFIX)
        }
        if self.config.tie_word_embeddings:
            found.pop("lm_head.weight", None)  # some writers store the tied matrix twice
        check_parameters(self.config, found, self._name)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """See WeightSource."""
        if name not in self._files:
            raise ModelFormatError(f"{self._name}: expected a tensor {name} {list(shape)}, found none")
        file = self._files[name]
        check_shape(name, shape, file.tensors[name].shape, self._name)
        array = file.float32(name)
        check_finite(array, name, self._name)
        return array

    def has(self, name: str) -> bool:
        """See WeightSource."""
        return name in self._files

    def formats(self) -> dict[str, tuple[int, int]]:
        """See WeightSource."""
        formats: dict[str, tuple[int, int]] = {}
        for name, file in self._files.items():
            info = file.tensors[name]
            add_format(formats, info.dtype, info.num_elements, info.num_bytes)
        return dict(sorted(formats.items(), key=lambda item: -item[1][1]))

    def close(self) -> None:
        """See WeightSource."""
        for file in set(self._files.values()):
            file.close()
        self._files = {}


def _open_files(folder: Path) -> dict[str, SafetensorsFile]:
    """The open file of each tensor."""
    if (folder / INDEX_FILE).is_file():
        return _open_shards(folder, read_json(folder / INDEX_FILE, ShardIndex).weight_map)
    if (folder / SINGLE_FILE).is_file():
        file = SafetensorsFile(folder / SINGLE_FILE)
        return dict.fromkeys(file.tensors, file)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise UnsupportedModelError(
            f"{folder.name}: only pickled weights found; pickle can run code, so only safetensors are read"
        )
    raise ModelFormatError(f"{folder.name}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither")


def _open_shards(folder: Path, weight_map: dict[str, str]) -> dict[str, SafetensorsFile]:
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        # Links may lead out of the folder (the hub's cache is made of them), names may not.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelFormatError(f"{INDEX_FILE}: expected the name of a safetensors file, found {shard!r}")
        if not (folder / shard).is_file():
            raise ModelFormatError(f"{INDEX_FILE}: expected a file {shard}, found none")
        shards[shard] = SafetensorsFile(folder / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise ModelFormatError(f"{shard}: expected a tensor {name}, found none")
    return {name: shards[shard] for name, shard in weight_map.items()}
