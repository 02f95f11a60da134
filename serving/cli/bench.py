"""`flashlet bench`: how fast this machine runs a model, without HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashlet.serving.cli import options as opt

if TYPE_CHECKING:
    from flashlet.model.executor import ExecutorOptions
    from flashlet.serving.bench.measurement import BenchReport
    from flashlet.serving.bench.options import BenchOptions

MEASURING = "Measuring"


def batch_sizes(text: str) -> tuple[int, ...]:
    """Parser of the option --batch-sizes."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"expected positive numbers such as 1,4,16, got {text!r}")
    return sizes


def bench(
    model: opt.ModelArgument = None,
    sizes: Annotated[
        str,
        typer.Option(
            "--batch-sizes",
            metavar="N,N,...",
            help="Sequences that decode at once.",
            rich_help_panel=MEASURING,
        ),
    ] = "1,2,4,8,16",
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the prefill.", rich_help_panel=MEASURING)
    ] = 512,
    context: Annotated[
        int, typer.Option(min=1, help="Tokens before the decoded ones.", rich_help_panel=MEASURING)
    ] = 100,
    long_context: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Tokens before those of one more sequence, to see what context costs; 0: none.",
            show_default="4000, or what the model holds",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    decode_tokens: Annotated[
        int,
        typer.Option(min=1, help="Tokens that each sequence decodes in a repeat.", rich_help_panel=MEASURING),
    ] = 32,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="Times that everything is measured; medians count.", rich_help_panel=MEASURING
        ),
    ] = 5,
    max_step_tokens: Annotated[
        int, typer.Option(min=1, help="Most prompt tokens in one step.", rich_help_panel=MEASURING)
    ] = 512,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help='Write the report as JSON; "-": to standard output, no table.'
        ),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instruction set of the C++ core; `flashlet doctor` lists them.",
            show_default="the best one",
            rich_help_panel=opt.EXECUTION,
        ),
    ] = None,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = "cpu",
    weights: opt.WeightsOption = "int8",
    kv_dtype: opt.KvDtypeOption = None,
    threads: opt.ThreadsOption = 0,
) -> None:
    """Measure prefill and decode by batch size, against the speed of memory.

    GB/s counts what a decode step must read: all weights once, and K and V of every token of context. "of
    read" is its share of the bandwidth at which the same threads read the weights alone, measured in between.

    flashlet bench --batch-sizes 1,16 --json -
    """
    from flashlet.model.executor import ExecutorOptions
    from flashlet.serving.bench.options import BenchOptions

    bench_options = BenchOptions(
        batch_sizes=batch_sizes(sizes),
        prompt_tokens=prompt_tokens,
        context=context,
        long_context=long_context,
        decode_tokens=decode_tokens,
        repeats=repeats,
        max_step_tokens=max_step_tokens,
    )
    executor_options = ExecutorOptions(
        backend=backend,
        device=device,
        weights=weights,
        kv_dtype=kv_dtype or ("int8" if weights == "int8" else "fp32"),
        threads=threads,
    )
    _write(_measure(model, executor_options, bench_options, isa), json_file)


def _measure(
    model: str | None, options: ExecutorOptions, bench_options: BenchOptions, isa: str | None
) -> BenchReport:
    """Load the model and measure it, with a status line on stderr if that is a terminal."""
    from rich.console import Console

    from flashlet.serving.bench.bench import run_bench
    from flashlet.serving.bench.load import load_executor
    from flashlet.serving.cli.resolving import resolve_model, served_name

    path = resolve_model(model)
    executor = load_executor(path, options, bench_options, isa)
    try:
        console = Console(stderr=True)
        with console.status("") as status:
            return run_bench(executor, served_name(model), options.kv_dtype, bench_options, status.update)
    finally:
        executor.close()


def _write(report: BenchReport, json_file: Path | None) -> None:
    import msgspec
    from rich.console import Console

    from flashlet.serving.bench.table import print_report

    text = msgspec.json.format(msgspec.json.encode(report)).decode() + "\n"
    if json_file == Path("-"):
        sys.stdout.write(text)
        return
    if json_file is not None:
        json_file.write_text(text)
    print_report(report, Console(width=None if sys.stdout.isatty() else 160))
