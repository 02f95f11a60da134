"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from flashlet.model.executor import Backend, KvDtype, WeightDtype
from flashlet.serving.config import MemoryAmount, parse_memory

EXECUTION = "Execution"
SAMPLING = "Sampling"


def memory_amount(text: str) -> MemoryAmount:
    """Parser of the option --kv-cache."""
    try:
        return parse_memory(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Name, ORG/REPO or path.", show_default="the default of `flashlet models`"
    ),
]
BackendOption = Annotated[
    Backend, typer.Option(help="What runs the model: the C++ core or PyTorch.", rich_help_panel=EXECUTION)
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:N; other than cpu needs torch.", rich_help_panel=EXECUTION)
]
WeightsOption = Annotated[
    WeightDtype, typer.Option(help="Format of the weights in memory.", rich_help_panel=EXECUTION)
]
KvDtypeOption = Annotated[
    KvDtype | None,
    typer.Option(
        help="Format of the KV cache.",
        show_default="int8, or fp32 with --weights fp32",
        rich_help_panel=EXECUTION,
    ),
]
KvCacheOption = Annotated[
    MemoryAmount | None,
    typer.Option(
        parser=memory_amount,
        metavar="AMOUNT",
        help="Memory for the KV cache: 2GiB, 800MB, or 40% of what is free.",
        show_default="25% of what is free, or less if that is enough",
        rich_help_panel=EXECUTION,
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(min=0, help="CPU threads; 0: one per physical core.", rich_help_panel=EXECUTION)
]
ContextLengthOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="TOKENS",
        help="Longest prompt and answer together.",
        show_default="the model's own limit",
        rich_help_panel=EXECUTION,
    ),
]
DraftOption = Annotated[
    str,
    typer.Option(
        metavar="auto|none|ngram|PATH",
        help="Who proposes tokens ahead, which changes only the speed. ngram: the text, where it repeats "
        "itself; auto: also the draft model that is shipped for MODEL, if any; PATH: another draft model.",
        rich_help_panel=EXECUTION,
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest answer in tokens.",
        show_default="what the context holds",
        rich_help_panel=SAMPLING,
    ),
]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, max=2.0, help="0: always the likeliest token.", rich_help_panel=SAMPLING)
]
TopPOption = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this total.", rich_help_panel=SAMPLING),
]
TopKOption = Annotated[
    int, typer.Option(min=0, help="Keep so many of the likeliest tokens; 0: all.", rich_help_panel=SAMPLING)
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Repeatable answers.", show_default="a random one", rich_help_panel=SAMPLING),
]
