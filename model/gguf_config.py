"""ModelConfig from the metadata and tensor table of a GGUF file."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import MAX_LAYERS, Architecture, ModelConfig, RopeConfig
from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.gguf_header import GgufHeader

ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Keys that change the result and are not implemented, with the value that changes nothing.
NEUTRAL_VALUES: dict[str, object] = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "attention.sliding_window_pattern": None,
    "attention.temperature_length": 0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.dimension_sections": None,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
DEFAULT_THETA = 10_000.0
END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")

Value = TypeVar("Value", int, float, str)


def gguf_config(header: GgufHeader, file: str, frequency_factors: NDArray[np.float32] | None) -> ModelConfig:
    """Shape of the model that `header` describes.

    `frequency_factors` is the content of the tensor rope_freqs.weight, if there. Raises ModelFormatError if
    a key is missing or has a wrong type, UnsupportedModelError for what is not implemented.
    """
    return _ConfigReader(header, file).config(frequency_factors)


class _ConfigReader:
    """Typed access to the keys under the architecture's prefix."""

    def __init__(self, header: GgufHeader, file: str) -> None:
        self._metadata = header.metadata
        self._tensors = header.tensors
        self._file = file
        name = self._checked("general.architecture", self._metadata.get("general.architecture"), str)
        if name not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{file}: expected the architecture {', '.join(ARCHITECTURES)}, found {name}"
            )
        self._architecture = ARCHITECTURES[name]

    def config(self, frequency_factors: NDArray[np.float32] | None) -> ModelConfig:
        self._refuse_unsupported()
        num_layers = self._required("block_count", int)
        window = self._optional("attention.sliding_window", int, 0)
        layer = "blk.0."
        return ModelConfig(
            architecture="mistral" if self._architecture == "llama" and window else self._architecture,
            vocab_size=self._vocab_size(),
            hidden_size=self._required("embedding_length", int),
            intermediate_size=self._required("feed_forward_length", int),
            num_layers=num_layers,
            num_heads=self._required("attention.head_count", int),
            num_kv_heads=self._optional(
                "attention.head_count_kv", int, self._required("attention.head_count", int)
            ),
            head_dim=self._head_dim(),
            context_length=self._required("context_length", int),
            rms_norm_eps=self._required("attention.layer_norm_rms_epsilon", float),
            rope=self._rope(frequency_factors),
            tie_word_embeddings="output.weight" not in self._tensors,
            qkv_bias=layer + "attn_q.bias" in self._tensors,
            o_bias=layer + "attn_output.bias" in self._tensors,
            mlp_bias=layer + "ffn_gate.bias" in self._tensors,
            qk_norm=layer + "attn_q_norm.weight" in self._tensors,
            sliding_windows=(window,) * min(num_layers, MAX_LAYERS) if window > 0 else (),
            bos_token_id=next(iter(self._token_ids("bos_token_id")), None),
            eos_token_ids=self._token_ids(*END_TOKENS),
        )

    def _refuse_unsupported(self) -> None:
        for name, neutral in NEUTRAL_VALUES.items():
            key = f"{self._architecture}.{name}"
            value = self._metadata.get(key, neutral)
            if isinstance(value, np.ndarray) or value != neutral:
                raise UnsupportedModelError(f"{self._file}: {key} = {str(value)[:80]} is not supported")

    def _vocab_size(self) -> int:
        table = self._tensors.get("token_embd.weight")
        if table is None or len(table.shape) != 2:
            raise ModelFormatError(f"{self._file}: expected a matrix token_embd.weight, found none")
        return table.shape[0]

    def _head_dim(self) -> int:
        hidden, heads = self._required("embedding_length", int), self._required("attention.head_count", int)
        if heads < 1:
            raise ModelFormatError(
                f"{self._file}: attention.head_count: expected a positive number, found {heads}"
            )
        head_dim = self._optional("attention.key_length", int, hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            size = self._optional(name, int, head_dim)
            if size != head_dim:
                raise UnsupportedModelError(f"{self._file}: {name}: expected {head_dim}, found {size}")
        return head_dim

    def _rope(self, frequency_factors: NDArray[np.float32] | None) -> RopeConfig:
        theta = self._optional("rope.freq_base", float, DEFAULT_THETA)
        factors = () if frequency_factors is None else tuple(float(factor) for factor in frequency_factors)
        # The older key for linear scaling has no type beside it.
        factor = self._optional("rope.scaling.factor", float, self._optional("rope.scale_linear", float, 1.0))
        kind = self._optional("rope.scaling.type", str, "none" if factor == 1.0 else "linear")
        if kind == "linear":
            return RopeConfig(theta=theta, scaling="linear", factor=factor, frequency_factors=factors)
        if kind == "none":
            return RopeConfig(theta=theta, frequency_factors=factors)
        if kind != "yarn":
            raise UnsupportedModelError(
                f"{self._file}: rope.scaling.type: expected none, linear or yarn, found {kind}"
            )
        magnitude = self._optional("rope.scaling.attn_factor", float, 1.0)
        growth = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        return RopeConfig(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_context=self._optional(
                "rope.scaling.original_context_length", int, self._required("context_length", int)
            ),
            beta_fast=self._optional("rope.scaling.yarn_beta_fast", float, 32.0),
            beta_slow=self._optional("rope.scaling.yarn_beta_slow", float, 1.0),
            attention_factor=None if magnitude == 1.0 else magnitude * growth,
            frequency_factors=factors,
        )

    def _token_ids(self, *names: str) -> tuple[int, ...]:
        """Distinct ids of those token keys that are there."""
        keys = [f"tokenizer.ggml.{name}" for name in names]
        found = [self._checked(key, self._metadata[key], int) for key in keys if key in self._metadata]
        return tuple(dict.fromkeys(found))

    def _required(self, name: str, kind: type[Value]) -> Value:
        key = f"{self._architecture}.{name}"
        return self._checked(key, self._metadata.get(key), kind)

    def _optional(self, name: str, kind: type[Value], default: Value) -> Value:
        key = f"{self._architecture}.{name}"
        return self._checked(key, self._metadata.get(key, default), kind)

    def _checked(self, key: str, value: Any, kind: type[Value]) -> Value:
        # Some files list one number for each layer; a list of equal ones is one number.
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, np.ndarray):
            raise UnsupportedModelError(f"{self._file}: {key} differs from layer to layer")
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            found = "none" if value is None else repr(value)[:80]
            raise ModelFormatError(f"{self._file}: {key}: expected {kind.__name__}, found {found}")
        return kind(value)
