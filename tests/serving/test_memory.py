from __future__ import annotations

from pathlib import Path

import pytest

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.errors import OutOfMemoryError
from flashlet.serving.config import MemoryAmount
from flashlet.serving.memory import available_memory, kv_bytes_per_token, parameter_count, plan_kv_cache

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    context_length=128,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)


def test_parameters_and_kv_bytes() -> None:
    assert parameter_count(CONFIG) == 3200 + 2 * (2048 + 1024 + 6144 + 64) + 32
    assert kv_bytes_per_token(CONFIG, "int8") == 2 * 2 * 2 * (8 + 4)
    assert kv_bytes_per_token(CONFIG, "fp16") == 2 * 2 * 2 * 16


def test_default_is_a_quarter_of_the_free_memory_or_what_can_be_used() -> None:
    free = 1_000_000
    available = free + int(parameter_count(CONFIG) * 1.0625)
    assert plan_kv_cache(CONFIG, "int8", "int8", None, max_tokens=10**9, available=available) == 250_000
    assert plan_kv_cache(CONFIG, "int8", "int8", None, max_tokens=10, available=available) == 960


def test_what_was_asked_for_is_what_is_planned() -> None:
    free = 1_000_000
    available = free + parameter_count(CONFIG) * 4
    for wanted, expected in ((MemoryAmount(num_bytes=777_777), 777_777), (MemoryAmount(share=0.4), 400_000)):
        assert plan_kv_cache(CONFIG, "fp32", "fp32", wanted, max_tokens=10, available=available) == expected


@pytest.mark.parametrize("wanted", [None, MemoryAmount(num_bytes=1), MemoryAmount(share=1.0)])
def test_weights_that_do_not_fit_are_refused(wanted: MemoryAmount | None) -> None:
    with pytest.raises(OutOfMemoryError, match="85.1 KiB.*20.0 KiB are available"):
        plan_kv_cache(CONFIG, "fp32", "int8", wanted, max_tokens=10, available=20 << 10)


def test_kv_cache_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OutOfMemoryError, match="KV cache 1.0 GiB"):
        plan_kv_cache(
            CONFIG, "int8", "int8", MemoryAmount(num_bytes=1 << 30), max_tokens=10, available=1 << 20
        )


def test_limit_of_a_container(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("1500\n")
    assert available_memory(tmp_path) == 3500
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 3500
