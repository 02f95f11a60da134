"""`flashlet doctor`: what this machine can serve, and what stands in the way."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from flashlet.serving.cli import options as opt
from flashlet.serving.cli.errors import ExitCode


def doctor(
    model: opt.ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address that serve would listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port that serve would listen on.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    kv_dtype: Annotated[
        Literal["int8", "fp16"], typer.Option(help="Format of the KV cache.", rich_help_panel=opt.EXECUTION)
    ] = "int8",
    threads: opt.ThreadsOption = 0,
    context_length: opt.ContextLengthOption = None,
) -> None:
    """Examine the machine: cores, memory and its speed, what the model needs, and what is wrong.

    Nothing is written and nothing is pulled. The exit code is 1 if something prevents serving.
    """
    from flashlet.serving.doctor.examination import ServePlan, examine

    examination = examine(ServePlan(model, host, port, threads, kv_dtype, context_length))
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(examination)).decode() + "\n")
    else:
        from rich.console import Console

        from flashlet.serving.doctor.table import print_examination

        print_examination(examination, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(ExitCode.OK if examination.can_serve else ExitCode.FAILED)
