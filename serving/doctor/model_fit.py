"""Whether a model fits into this machine, and how fast it can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flashlet.model.executor import KvDtype
from flashlet.model.weights import open_weights
from flashlet.serving.bench.step_cost import decode_bytes
from flashlet.serving.memory import kv_bytes_per_token, weight_bytes

_CONTEXT = 1000  # tokens, for the expected speed


@dataclass(frozen=True, slots=True)
class ModelFit:
    """Sizes in bytes, with int8 weights."""

    name: str
    weight_bytes: int
    kv_dtype: KvDtype
    kv_bytes_per_token: int
    context_length: int  # tokens
    kv_bytes: int  # of one sequence of the longest context
    cached: bool  # quantized weights are on disk: the first start is over
    expected_context: int  # tokens of context at the expected speed
    expected_tokens_per_second: float | None  # one sequence, if memory is the only limit; None: not measured

    @property
    def num_bytes(self) -> int:
        """What serving one sequence of the longest context takes."""
        return self.weight_bytes + self.kv_bytes


def fit_model(
    name: str,
    path: Path,
    kv_dtype: KvDtype,
    context_length: int | None,
    cached: bool,
    gb_per_second: float | None,
) -> ModelFit:
    """Size of the model at `path` and its speed at a read bandwidth; raises what `open_weights` raises."""
    source = open_weights(path)
    config = source.config
    source.close()
    context = min(context_length or config.context_length, config.context_length)
    expected_context = min(_CONTEXT, context)
    per_token = kv_bytes_per_token(config, kv_dtype)
    step_bytes = decode_bytes(config, kv_dtype, [expected_context])
    return ModelFit(
        name=name,
        weight_bytes=weight_bytes(config, "int8"),
        kv_dtype=kv_dtype,
        kv_bytes_per_token=per_token,
        context_length=context,
        kv_bytes=context * per_token,
        cached=cached,
        expected_context=expected_context,
        expected_tokens_per_second=gb_per_second * 1e9 / step_bytes if gb_per_second else None,
    )
