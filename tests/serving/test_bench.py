"""`flashlet bench` on the tiny model: what it reports, that its tokens are repeatable, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flashlet.kernels.cpu import instruction_sets
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.serving.bench.case import token_hash
from flashlet.serving.bench.step_cost import decode_bytes, int8_weight_bytes, step_macs
from flashlet.serving.cli import app

SMALL = "--batch-sizes 1,3 --prompt-tokens 70 --context 20 --decode-tokens 10 --long-context 200 --repeats 2"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def report(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, *SMALL.split(), "--json", "-")
    assert result.exit_code == 0, result.output
    decoded: dict[str, Any] = json.loads(result.stdout)
    return decoded


@pytest.fixture(scope="module")
def native(tiny_model_path: Path) -> dict[str, Any]:
    return report(tiny_model_path, "--threads", "2")


def test_reports_every_case(native: dict[str, Any]) -> None:
    cases = [(item["kind"], item["batch_size"], item["context"]) for item in native["measurements"]]
    assert cases == [("prefill", 1, 0), ("decode", 1, 20), ("decode", 3, 20), ("decode", 1, 200)]
    for item in native["measurements"]:
        assert len(item["samples"]) == 2
        assert min(item["samples"]) <= item["tokens_per_second"] <= max(item["samples"])
        assert item["gmac_per_second"] > 0
        assert item["repeatable"]
        # The first thread's stages are parts of the step.
        assert 0 < sum(item["stage_ms"].values()) < 2 * item["step_ms"]
    decodes = native["measurements"][1:]
    assert all(item["gb_per_second"] > 0 and item["read_share"] > 0 for item in decodes)
    assert native["measurements"][0]["gb_per_second"] is None
    assert native["context_cost"] > 0
    assert native["batch_invariant"]


@pytest.mark.parametrize("isa", instruction_sets())
def test_tokens_do_not_depend_on_threads_or_instruction_set(
    native: dict[str, Any], tiny_model_path: Path, isa: str
) -> None:
    other = report(tiny_model_path, "--threads", "1", "--isa", isa)
    assert isa in other["executor"]
    assert hashes(other) == hashes(native)


def test_torch_gives_the_same_tokens_and_no_bandwidth(native: dict[str, Any], tiny_model_path: Path) -> None:
    torch = report(tiny_model_path, "--backend", "torch", "--threads", "1")
    assert hashes(torch) == hashes(native)
    assert torch["read_gb_per_second"] is torch["weight_bytes"] is None
    assert all(item["gb_per_second"] is None and item["stage_ms"] == {} for item in torch["measurements"])


def hashes(decoded: dict[str, Any]) -> list[str]:
    return [decoded["output_hash"], *(item["output_hash"] for item in decoded["measurements"])]


def test_table_and_file(tiny_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = run(tiny_model_path, *SMALL.split(), "--json", file)
    assert result.exit_code == 0
    written = json.loads(file.read_text())
    assert written["output_hash"] in result.output
    for heading in ("tokens/s", "GB/s", "of read", "attention", "200 tokens of context"):
        assert heading in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt-tokens", "4000"], 1, "the longest sequence is 512 tokens, the benchmark needs 4000"),
        (["--context", "510"], 1, "the benchmark needs 542"),
        (["--isa", "mmx"], 1, "expected one of"),
        (["--isa", "portable", "--backend", "torch"], 1, "only the native backend"),
        (["--batch-sizes", "1,x"], 2, "expected positive numbers"),
        (["--batch-sizes", "0"], 2, "expected positive numbers"),
    ],
)
def test_refusals(tiny_model_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(tiny_model_path, *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_step_cost_by_hand() -> None:
    config = ModelConfig(
        architecture="llama", vocab_size=32, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=16, context_length=64, rms_norm_eps=1e-5, rope=RopeConfig(),
        tie_word_embeddings=True, sliding_windows=(0, 4),
    )  # fmt: skip
    cells = 4 + 2 + 2 * 3 + 2 * 2  # of a layer, 544 bytes each: qkv (64, 32), o, gate and up, down (32, 48)
    weights = 2 * (cells * 544 + 2 * 32 * 4) + 2 * 544 + 32 * 4
    assert int8_weight_bytes(config) == weights
    # K and V of one head of 16 with a 4-byte scale each; layer 0 sees 10 tokens, layer 1 its window of 4.
    assert decode_bytes(config, "int8", [10]) == weights + (10 + 4) * 2 * (16 + 4)
    assert decode_bytes(config, "fp16", [10, 2]) == weights + (10 + 4 + 2 + 2) * 2 * 32
    layers = 2 * (64 * 32 + 32 * 32 + 3 * 48 * 32)
    assert step_macs(config, [10], 1) == layers + 2 * 32 * (10 + 4) + 32 * 32


def test_token_hash_is_of_little_endian_integers() -> None:
    # printf '\001\0\0\0\002\001\0\0' | sha256sum
    assert token_hash([1, 258]) == "fb8bbe2ad3ab5292"
