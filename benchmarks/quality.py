"""What quantization costs: the native executor's distributions against those of fp32, on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from environment import describe_environment, environment_lines
from numpy.typing import NDArray

from flashlet.model.executor import ExecutorOptions, KvDtype
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.tokenizer import load_tokenizer

_PROSE = Path(__file__).parent.parent / "tests" / "data" / "prose.txt"
_KV_BYTES = 1 << 27
_KV_DTYPES: tuple[KvDtype, ...] = ("int8", "fp16")

Logits = NDArray[np.float32]  # [vocab]


def main(
    model: Annotated[str, typer.Argument(help="GGUF file or name of a pulled model.")] = DEFAULT_MODEL,
    text: Annotated[Path, typer.Option(help="Text to score.")] = _PROSE,
    pieces: Annotated[int, typer.Option(min=1, help="Pieces of the text, each scored on its own.")] = 4,
    piece_tokens: Annotated[int, typer.Option(min=2, max=512, help="Tokens of a piece.")] = 512,
    threads: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[Path, typer.Option(help="Folder for quality.md and quality.json.")] = Path(),
) -> None:
    """Mean KL divergence from fp32 and agreement of the likeliest token, for each KV type."""
    path = resolve(model, pull_missing=True)
    token_ids = load_tokenizer(path).encode(text.read_text())
    if len(token_ids) < pieces * piece_tokens:
        raise typer.BadParameter(f"expected a text of {pieces * piece_tokens} tokens, got {len(token_ids)}")
    exact = TorchExecutor(
        path, ExecutorOptions(weights="fp32", kv_dtype="fp32", kv_cache_bytes=4 * _KV_BYTES)
    )
    natives = {
        kind: NativeExecutor(path, ExecutorOptions(kv_dtype=kind, kv_cache_bytes=_KV_BYTES, threads=threads))
        for kind in _KV_DTYPES
    }
    divergences: dict[str, list[float]] = {kind: [] for kind in natives}
    same_top: dict[str, int] = dict.fromkeys(natives, 0)
    for start in range(0, pieces * piece_tokens, piece_tokens):
        part = token_ids[start : start + piece_tokens]
        blocks = range(-(-piece_tokens // exact.block_size))
        step = Step([SequenceSlice(part, 0, blocks, logprob_targets=part)])
        reference = np.stack([row.logits for row in exact.forward(step)])  # [tokens, vocab]
        for kind, executor in natives.items():
            logits = executor.logits(step)
            divergences[kind] += map(kl_divergence, reference, logits)
            same_top[kind] += int((reference.argmax(1) == logits.argmax(1)).sum())
    results = [_result(kind, np.array(divergences[kind]), same_top[kind]) for kind in natives]
    _write(results, output)


def kl_divergence(reference: Logits, logits: Logits) -> float:
    """KL(reference || logits) in nats."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _result(kv_dtype: str, divergence: NDArray[np.float64], same_top: int) -> dict[str, str | float]:
    return {
        "kv_dtype": kv_dtype,
        "tokens": len(divergence),
        "mean_kl": float(divergence.mean()),
        "p99_kl": float(np.percentile(divergence, 99)),
        "same_top": same_top / len(divergence),
    }


def _write(results: list[dict[str, str | float]], folder: Path) -> None:
    environment = describe_environment()
    lines = [
        "| weights | KV | tokens | mean KL | 99th percentile | same top-1 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| int8 | {row['kv_dtype']} | {row['tokens']:,} | {row['mean_kl']:.5f} | {row['p99_kl']:.5f} "
        f"| {row['same_top']:.1%} |"
        for row in results
    ]
    text = f"{environment_lines(environment)}\n\n" + "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(text)
    result = msgspec.json.encode({"environment": environment, "results": results})
    (folder / "quality.json").write_bytes(msgspec.json.format(result))
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
