"""The default model: fp32 against transformers' generate, int8 against fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.parameters import parameter_shapes
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.tokenizer import load_tokenizer
from flashlet.model.weights import open_weights

pytestmark = pytest.mark.timeout(900)  # a minute of work on an idle core
PROSE = Path(__file__).parents[1] / "data" / "prose.txt"
PROMPTS = [
    "The capital of France is", "Once upon a time", "In the beginning", "Water boils at",
    "def fibonacci(n):", "The quick brown fox", "My favourite book is", "To make a good cup of tea,",
    "The three primary colours are", "She opened the door and", "Photosynthesis is the process by which",
    "The first president of the United States", "A prime number is", "Dear Sir or Madam,",
    "The weather tomorrow will be", "1, 2, 3, 4, 5,", "The mitochondria is", "Yesterday I went to",
    "import numpy as np", "The opposite of hot is",
]  # fmt: skip
NEW_TOKENS = 32
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def fp32(default_model_path: Path) -> TorchExecutor:
    torch.set_num_threads(1)  # threads that wait for each other are slow on a busy machine
    options = ExecutorOptions(weights="fp32", kv_dtype="fp32", kv_cache_bytes=1 << 26)
    return TorchExecutor(default_model_path, options)


@pytest.fixture(scope="module")
def transformers_model(default_model_path: Path) -> Any:
    """Transformers' Llama over the same tensors; its own GGUF reader takes half a minute."""
    source = open_weights(default_model_path)
    config = source.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=True,
        )
    )
    tensors = {
        name: torch.from_numpy(source.tensor(name, shape).copy())
        for name, shape in parameter_shapes(config).items()
    }
    missing = model.load_state_dict(tensors, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
    return model.eval()


def _generate(executor: TorchExecutor, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations, all prompts in each step."""
    outputs: list[list[int]] = [[] for _ in prompts]
    parts, starts = prompts, [0] * len(prompts)
    for _ in range(NEW_TOKENS):
        step = Step([
            SequenceSlice(part, start, [2 * i, 2 * i + 1], [SampleRequest(GREEDY, start + len(part))])
            for i, (part, start) in enumerate(zip(parts, starts, strict=True))
        ])  # fmt: skip
        starts = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        parts = [list(result.token_ids) for result in executor.execute(step)]
        for output, part in zip(outputs, parts, strict=True):
            output.extend(part)
    return outputs


def test_fp32_greedy_equals_transformers_generate(
    fp32: TorchExecutor, transformers_model: Any, default_model_path: Path
) -> None:
    tokenizer = load_tokenizer(default_model_path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = transformers_model.generate(
        padded,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )[:, longest:]
    outputs = _generate(fp32, prompts)
    assert outputs == expected.tolist()
    assert tokenizer.decode(outputs[0]).startswith(" Paris")


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_int8_stays_close_to_fp32_on_prose(fp32: TorchExecutor, default_model_path: Path) -> None:
    """Mean KL divergence and same most likely token, over 4 x 512 tokens.

    Int8 is the native executor, whose logits are torch's to the bit: test_executor_native_default.py.
    """
    int8 = NativeExecutor(default_model_path, ExecutorOptions(kv_cache_bytes=1 << 26, threads=1))
    token_ids = load_tokenizer(default_model_path).encode(PROSE.read_text())[:2048]
    assert len(token_ids) == 2048
    divergence, same_top = [], 0
    for first in range(0, 2048, 512):
        part = token_ids[first : first + 512]
        step = Step([SequenceSlice(part, 0, range(16), logprob_targets=part)])
        for exact, approximate in zip(fp32.forward(step), int8.logits(step), strict=True):
            p, q = _log_softmax(exact.logits), _log_softmax(approximate)
            divergence.append(float((np.exp(p) * (p - q)).sum()))
            same_top += int(exact.logits.argmax() == approximate.argmax())
    int8.close()
    print(f"mean KL {np.mean(divergence):.5f}, same top-1 {same_top / 2048:.2%}")
    assert np.mean(divergence) <= 0.0025
    assert same_top / 2048 >= 0.965
