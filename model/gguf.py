"""Weights of a GGUF file: memory-mapped, dequantized tensor by tensor by the `gguf` package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from flashlet.model.config import ModelConfig
from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.gguf_config import gguf_config
from flashlet.model.gguf_header import GgufTensor, read_gguf_header
from flashlet.model.parameters import check_parameters, check_shape
from flashlet.model.weights import add_format, check_finite, source_identity

TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_PATTERN = re.compile(r"blk\.(0|[1-9][0-9]*)\.(\w+)\.(weight|bias)")
FREQUENCY_FACTORS = "rope_freqs.weight"
CHUNK_ELEMENTS = 1 << 20  # dequantized at a time: the package's temporaries are several times as large


class GgufWeights:
    """WeightSource over one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Open `path` and check its tensors against its metadata. Errors as `open_weights`."""
        header = read_gguf_header(path)
        self.identity: str = source_identity(path)
        self._file = path.name
        self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        factors = header.tensors.pop(FREQUENCY_FACTORS, None)
        self.config: ModelConfig = gguf_config(
            header, self._file, None if factors is None else self._dequantize(factors).reshape(-1)
        )
        self._tensors = {_hugging_face_name(name): tensor for name, tensor in header.tensors.items()}
        check_parameters(
            self.config, {name: tensor.shape for name, tensor in self._tensors.items()}, self._file
        )

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """See WeightSource."""
        if name not in self._tensors:
            raise ModelFormatError(f"{self._file}: expected a tensor {name} {list(shape)}, found none")
        check_shape(name, shape, self._tensors[name].shape, self._file)
        array = self._dequantize(self._tensors[name])
        check_finite(array, name, self._file)
        heads = self._interleaved_heads(name)
        return _split_halves(array, heads) if heads else array

    def has(self, name: str) -> bool:
        """See WeightSource."""
        return name in self._tensors

    def formats(self) -> dict[str, tuple[int, int]]:
        """See WeightSource."""
        formats: dict[str, tuple[int, int]] = {}
        for tensor in self._tensors.values():
            add_format(formats, tensor.type.name, tensor.num_elements, tensor.num_bytes)
        return dict(sorted(formats.items(), key=lambda item: -item[1][1]))

    def close(self) -> None:
        """See WeightSource."""
        self._bytes = np.empty(0, np.uint8)
        self._tensors = {}

    def _dequantize(self, tensor: GgufTensor) -> NDArray[np.float32]:
        columns = tensor.shape[-1]
        rows = tensor.num_elements // columns
        stored = self._bytes[tensor.offset : tensor.offset + tensor.num_bytes].reshape(rows, -1)
        result = np.empty((rows, columns), np.float32)
        chunk = max(1, CHUNK_ELEMENTS // columns)
        try:
            with np.errstate(all="ignore"):  # damaged scales are found by check_finite
                for row in range(0, rows, chunk):
                    result[row : row + chunk] = dequantize(stored[row : row + chunk], tensor.type)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{self._file}: {tensor.name}: tensor type {tensor.type.name} is not supported"
            ) from error
        return result.reshape(tensor.shape)

    def _interleaved_heads(self, name: str) -> int:
        """Number of heads if the rows are stored in the order of interleaved RoPE, else 0."""
        if self.config.architecture not in {"llama", "mistral"}:
            return 0
        if ".q_proj." in name:
            return self.config.num_heads
        return self.config.num_kv_heads if ".k_proj." in name else 0


def _split_halves(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from (0, d/2, 1, d/2 + 1, ...), as GGUF stores Llama, back to (0, 1, 2, ...)."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def _hugging_face_name(name: str) -> str:
    """The name under which the parameter is known here; names without a counterpart stay as they are."""
    layer = LAYER_PATTERN.fullmatch(name)
    if layer and layer[2] in LAYER_NAMES:
        return f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.{layer[3]}"
    stem, _, suffix = name.rpartition(".")
    return f"{TOP_NAMES[stem]}.{suffix}" if stem in TOP_NAMES else name
