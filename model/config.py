"""The shape of a model: everything a forward pass must know besides the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flashlet.model.errors import ModelFormatError

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeScalingType = Literal["none", "linear", "llama3", "yarn"]
MAX_LAYERS = 4096  # far above any model, and small enough to enumerate for a hostile file


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its context extensions.

    `factor` stretches the context for every scaling type; `low_freq_factor` and `high_freq_factor`
    belong to llama3, `beta_fast`, `beta_slow` and `attention_factor` to yarn (Peng et al. 2023).
    `frequency_factors` divide the inverse frequencies, one for each, whatever the scaling type (GGUF
    files of Llama 3.1 and later carry them in place of the llama3 parameters).
    """

    theta: float = 10_000.0
    scaling: RopeScalingType = "none"
    factor: float = 1.0
    original_context: int = 0  # tokens the model was trained on before scaling; 0: unknown
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    frequency_factors: tuple[float, ...] = ()  # head_dim / 2 numbers; empty: all are 1

    def __post_init__(self) -> None:
        """Reject numbers that give no finite frequency."""
        positive = [
            ("theta", self.theta),
            ("factor", self.factor),
            *(("frequency_factors", number) for number in self.frequency_factors),
        ]
        for name, number in positive:
            if not 0 < number < math.inf:
                raise ModelFormatError(f"rope {name}: expected a positive finite number, found {number}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer with grouped-query attention and a gated SiLU feed-forward."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int  # longest sequence in tokens, prompt and answer together
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head before RoPE (Qwen3)
    sliding_windows: tuple[int, ...] = ()  # per layer, in tokens; 0 or an empty tuple: full attention
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject shapes that no kernel could run."""
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
            "head_dim", "context_length",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value < 2**31:
                raise ModelFormatError(f"{name}: expected a positive 32-bit integer, found {value!r}")
        if self.num_layers > MAX_LAYERS:
            raise ModelFormatError(f"num_layers: expected at most {MAX_LAYERS}, found {self.num_layers}")
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(
                f"num_heads: expected a multiple of {self.num_kv_heads} KV heads, found {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ModelFormatError(f"head_dim: expected an even number for RoPE, found {self.head_dim}")
        if self.sliding_windows and len(self.sliding_windows) != self.num_layers:
            raise ModelFormatError(
                f"sliding_windows: expected {self.num_layers} entries, found {len(self.sliding_windows)}"
            )
        if self.rope.frequency_factors and len(self.rope.frequency_factors) != self.head_dim // 2:
            raise ModelFormatError(
                f"rope frequency_factors: expected {self.head_dim // 2} numbers, "
                f"found {len(self.rope.frequency_factors)}"
            )
        if not 0 < self.rms_norm_eps < 1:
            raise ModelFormatError(
                f"rms_norm_eps: expected a number between 0 and 1, found {self.rms_norm_eps}"
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads (or all value heads) together."""
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int:
        """Sliding window of `layer` in tokens; 0 means full attention."""
        return self.sliding_windows[layer] if self.sliding_windows else 0
