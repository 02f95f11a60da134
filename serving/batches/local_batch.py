"""`flashlet batch`: a file of requests, answered in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flashlet.model.errors import FlashletError
from flashlet.serving.batches.batch_input import ENDPOINTS, InputLine, parse_line, read_input
from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.batches.line_runner import LineRunner
from flashlet.serving.batches.output_file import OutputFile

POLL = 0.02  # seconds until a line that found the queue full is tried again
SHOWN = 5  # problems of the input that the error names


class BatchInputError(FlashletError):
    """The input is not a file of requests; the message says where."""


def read_lines(path: Path) -> list[InputLine]:
    """The lines of an input, of any length. Raises BatchInputError for a file with a wrong line."""
    limits = BatchConfig(path.parent)
    num_lines = path.stat().st_size + 1
    lines, problems = read_input(path, ENDPOINTS, num_lines, limits.max_line_bytes)
    if problems:
        shown = "; ".join(
            problem.message if problem.line is None else f"line {problem.line}: {problem.message}"
            for problem in problems[:SHOWN]
        )
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BatchInputError(f"{path}: {shown}{more}")
    return lines


async def answer_lines(
    runner: LineRunner,
    path: Path,
    lines: Sequence[InputLine],
    output: OutputFile,
    parallel: int,
    on_answer: Callable[[], None],
) -> None:
    """Answer the lines of the file `path`, `parallel` at a time; `on_answer` is called after each.

    Raises:
        RequestError: the engine has failed. The answers until then are in `output`.
    """
    rest = iter(lines)
    workers = [
        asyncio.create_task(_work(runner, path, rest, output, on_answer))
        for _ in range(min(parallel, len(lines)))
    ]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(
    runner: LineRunner,
    path: Path,
    lines: Iterator[InputLine],
    output: OutputFile,
    on_answer: Callable[[], None],
) -> None:
    """Answer lines one after the other until none is left."""
    for line in lines:
        with path.open("rb") as file:
            file.seek(line.start)
            request = parse_line(file.read(line.length))
        while (answer := await runner.run(request)) is None:
            runner.check_ready()
            await asyncio.sleep(POLL)
        output.add(line.custom_id, answer)
        on_answer()
