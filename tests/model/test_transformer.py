"""The fp32 model against transformers, on small random models of every supported kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.step import SequenceSlice, Step

LENGTH = 50
SIZES: dict[str, Any] = {
    "vocab_size": 70, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.15, "attn_implementation": "eager", "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}

CASES: dict[str, PretrainedConfig] = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, untied, biases": LlamaConfig(
        **SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "llama, linear rope": LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "llama, llama3 rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, yarn rope": LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral, window": MistralConfig(**SIZES, sliding_window=11),
    "qwen2, biases": Qwen2Config(**SIZES),
    "qwen2, window from layer 1": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3, wide heads": Qwen3Config(**SIZES, head_dim=32),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder, transformers model) of one case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CASES[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path, model


def _run(executor: TorchExecutor, token_ids: Sequence[int], chunks: Sequence[int]) -> NDArray[np.float32]:
    """Logits of every token, fed in chunks of the given lengths."""
    table = list(range(LENGTH // 32 + 1))[::-1]
    rows, start = [], 0
    for length in chunks:
        part = token_ids[start : start + length]
        step = Step([SequenceSlice(part, start, table, logprob_targets=part)])
        rows += [row.logits for row in executor.forward(step)]
        start += length
    return np.stack(rows)


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
def test_logits_equal_transformers(case: tuple[Path, Any], kv_dtype: Any) -> None:
    path, model = case
    executor = TorchExecutor(path, ExecutorOptions(weights="fp32", kv_dtype=kv_dtype, kv_cache_bytes=1 << 20))
    token_ids = torch.randint(3, 70, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(token_ids[None]).logits[0].numpy()
    tolerance = 1e-4 if kv_dtype == "fp32" else 5e-2
    for chunks in ([LENGTH], [1, 7, 20, 4, 18], [40] + [1] * 10):
        logits = _run(executor, token_ids.tolist(), chunks)
        np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)
