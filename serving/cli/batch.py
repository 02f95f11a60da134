"""`flashlet batch`: a file of requests in, a file of answers out, without a server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashlet.serving.cli import options as opt
from flashlet.serving.cli.errors import ExitCode

if TYPE_CHECKING:
    from flashlet.serving.batches.batch_input import InputLine
    from flashlet.serving.batches.output_file import OutputFile
    from flashlet.serving.loading import LoadedEngine


def batch(
    input_file: Annotated[
        Path,
        typer.Argument(metavar="INPUT", exists=True, dir_okay=False, help="Requests, one JSON per line."),
    ],
    output_file: Annotated[
        Path, typer.Argument(metavar="OUTPUT", dir_okay=False, help="Answers; those that are there are kept.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Name, ORG/REPO or path.", show_default="the default of `flashlet models`"),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=512, help="Lines that run at once.")] = 32,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = "cpu",
    weights: opt.WeightsOption = "int8",
    kv_dtype: opt.KvDtypeOption = None,
    kv_cache: opt.KvCacheOption = None,
    threads: opt.ThreadsOption = 0,
    context_length: opt.ContextLengthOption = None,
) -> None:
    """Answer a file of requests, in the line format of the OpenAI Batch API.

    Interrupted, it goes on where it was when it is started again. Exit code 1 if a line failed.

    flashlet batch in.jsonl out.jsonl
    """
    from flashlet.serving.batches.local_batch import read_lines
    from flashlet.serving.batches.output_file import OutputFile
    from flashlet.serving.cli.resolving import local_engine, served_name
    from flashlet.serving.loading import LoadOptions

    lines = read_lines(input_file)
    output = OutputFile(output_file, {line.custom_id for line in lines})
    try:
        rest = [line for line in lines if line.custom_id not in output.answered]
        started = time.perf_counter()
        if rest:
            load_options = LoadOptions(
                backend, device, weights, kv_dtype, kv_cache, threads, context_length, max_sequences=parallel
            )
            with local_engine(model, load_options) as loaded, _progress_bar(len(lines), output) as advance:
                _answer(loaded, served_name(model), input_file, rest, output, parallel, advance)
        seconds = time.perf_counter() - started
        earlier = f", {len(lines) - len(rest)} of them earlier" if len(rest) < len(lines) else ""
        print(
            f"{len(lines)} lines answered{earlier}: {output.num_failed} failed; {seconds:.1f} s",
            file=sys.stderr,
        )
        if output.num_failed:
            raise typer.Exit(ExitCode.FAILED)
    finally:
        output.close()


def _answer(
    loaded: LoadedEngine,
    name: str,
    path: Path,
    lines: list[InputLine],
    output: OutputFile,
    parallel: int,
    advance: Callable[[], None],
) -> None:
    """Run the engine in a thread and answer `lines` through the endpoints of a server without a socket."""
    from flashlet.serving.api.app import build_line_app
    from flashlet.serving.api.config import ServerConfig
    from flashlet.serving.api.loaded_model import LoadedModel
    from flashlet.serving.api.service import Service
    from flashlet.serving.batches.line_runner import LineRunner
    from flashlet.serving.batches.local_batch import answer_lines
    from flashlet.serving.engine.engine_loop import EngineLoop

    engine_loop = EngineLoop(loaded.engine)
    service = Service(ServerConfig(model_names=(name,)))
    service.model = LoadedModel.of(name, loaded, engine_loop)
    runner = LineRunner(build_line_app(service), service.ready_model, priority=0)  # nobody else waits

    async def answer() -> None:
        engine_loop.start()
        try:
            await answer_lines(runner, path, lines, output, parallel, advance)
        finally:
            engine_loop.stop()  # while there is an event loop that hears of it

    asyncio.run(answer())


@contextmanager
def _progress_bar(total: int, output: OutputFile) -> Iterator[Callable[[], None]]:
    """A bar on stderr if that is a terminal; yields what to call after each answer."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Lines", total=total, completed=len(output.answered))

        def advance() -> None:
            failed = f" ({output.num_failed} failed)" if output.num_failed else ""
            bar.update(task, advance=1, description="Lines" + failed)

        yield advance
