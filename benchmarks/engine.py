"""Compare the engines alone, without HTTP: `flashlet bench` and the benchmarks of llama.cpp in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from comparison import Comparison
from environment import describe_environment, environment_lines
from llama_cpp import LlamaCpp

from flashlet.model.executor import Executor, ExecutorOptions
from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.serving.bench.bench import run_bench
from flashlet.serving.bench.load import load_executor
from flashlet.serving.bench.options import BenchOptions

_TOKENS = 128  # decoded per sequence
_PROMPT = 512  # tokens of the prefill
_BATCH = 16
_BATCH_CONTEXT = 128  # tokens before the decoded ones in a batch
_SINGLE = f"decode, 1 sequence, {_TOKENS} tokens"
_PREFILL = f"prefill, {_PROMPT} tokens"
_BATCHED = f"decode, {_BATCH} sequences, {_TOKENS} tokens each"
_SPEED = "tokens/s"

_ALONE = BenchOptions((1,), _PROMPT, context=1, long_context=0, decode_tokens=_TOKENS, repeats=1)
_TOGETHER = BenchOptions(
    (_BATCH,), prompt_tokens=1, context=_BATCH_CONTEXT, long_context=0, decode_tokens=_TOKENS, repeats=1
)


def main(
    llama_bin: Annotated[Path, typer.Argument(help="Folder of the llama.cpp programs.")],
    model: Annotated[str, typer.Argument(help="GGUF file or name of a pulled model.")] = DEFAULT_MODEL,
    llama_format: Annotated[
        list[str], typer.Option(help="Formats of llama.cpp's weights; original: the file as it is.")
    ] = ["Q8_0", "original"],  # noqa: B006
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path, typer.Option(help="Folder for engine.md and engine.json.")] = Path(),
) -> None:
    """Measure prefill and decode of one model with both engines, round by round."""
    path = resolve(model, pull_missing=True)
    programs = LlamaCpp(llama_bin)
    files = {
        f"llama.cpp {kind}": path if kind == "original" else programs.requantized(path, kind)
        for kind in llama_format
    }
    comparison = Comparison(("flashlet", *files))
    executor = load_executor(path, ExecutorOptions(backend="native", threads=threads), _TOGETHER)
    try:
        for number in range(rounds):
            _measure_flashlet(executor, model, comparison)
            for name, file in files.items():
                _measure_llama(programs, name, file, threads, comparison)
            typer.echo(f"round {number + 1} of {rounds} is done", err=True)
    finally:
        executor.close()
    _write(comparison, executor.name, programs.version("llama-bench"), output)


def _measure_flashlet(executor: Executor, model: str, comparison: Comparison) -> None:
    prefill, single = run_bench(executor, model, "int8", _ALONE).measurements
    batched = run_bench(executor, model, "int8", _TOGETHER).measurements[1]
    comparison.add(_PREFILL, "flashlet", {_SPEED: prefill.tokens_per_second})
    assert single.gb_per_second and single.read_gb_per_second and single.read_share
    bandwidth = {
        "GB/s": single.gb_per_second,
        "GB/s of reading alone": single.read_gb_per_second,
        "share of reading, %": 100 * single.read_share,
    }
    comparison.add(_SINGLE, "flashlet", {_SPEED: single.tokens_per_second, **bandwidth})
    comparison.add(_BATCHED, "flashlet", {_SPEED: batched.tokens_per_second})


def _measure_llama(programs: LlamaCpp, name: str, file: Path, threads: int, comparison: Comparison) -> None:
    common = ("-m", file, "-t", str(threads))
    lengths = ("-p", str(_PROMPT), "-n", str(_TOKENS))
    for test in json.loads(programs.run("llama-bench", *common, *lengths, "-r", "1", "-o", "json")):
        comparison.add(_PREFILL if test["n_prompt"] else _SINGLE, name, {_SPEED: test["avg_ts"]})
    sizes = ("-npp", str(_BATCH_CONTEXT), "-ntg", str(_TOKENS), "-npl", str(_BATCH))
    context = ("-c", str(_BATCH * (_BATCH_CONTEXT + _TOKENS)))
    lines = programs.run(
        "llama-batched-bench", *common, *context, *sizes, "--output-format", "jsonl"
    ).splitlines()
    result = next(json.loads(line) for line in lines if line.startswith("{"))
    comparison.add(_BATCHED, name, {_SPEED: result["speed_tg"]})


def _write(comparison: Comparison, executor: str, version: str, folder: Path) -> None:
    environment = {**describe_environment(), "executor": executor, "llama.cpp": version}
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{environment_lines(environment)}\n\n{comparison.markdown()}"
    (folder / "engine.md").write_text(text)
    result = msgspec.json.encode({"environment": environment, **comparison.to_json()})
    (folder / "engine.json").write_bytes(msgspec.json.format(result))
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
