"""Compare this server with others over HTTP, as clients see them.

Servers run side by side but are used in turns, round by round, so that what else happens on the machine
hits all of them alike; an idle server that uses CPU time is reported. See benchmarks/README.md.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from chart import draw_chart
from comparison import Comparison
from contender import Contender
from environment import describe_environment, environment_lines
from llama_cpp import LlamaCpp
from prompts import PromptMaker
from scenarios import LONG, SHORT, FirstToken, Interruption, Load, Scenario

from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.tokenizer import load_tokenizer

_SLOTS = 16  # sequences at once, the most clients of any scenario
_CONTEXT = 2048  # tokens of each slot of llama-server
_PAUSE = 0.5  # seconds between two runs
_IDLE_SHARE = 0.03  # of a CPU: what an idle server may use without a warning


def main(
    model: Annotated[str, typer.Argument(help="GGUF file or name of a pulled model.")] = DEFAULT_MODEL,
    llama_server: Annotated[Path | None, typer.Option(help="Start this llama-server as well.")] = None,
    llama_quantize: Annotated[
        Path | None, typer.Option(help="llama-quantize.", show_default="beside llama-server")
    ] = None,
    llama_format: Annotated[
        list[str], typer.Option(help="Formats of the weights for llama-server; original: the file as it is.")
    ] = ["Q8_0"],  # noqa: B006
    url: Annotated[
        str | None, typer.Option(help="Use this running flashlet instead of starting one.")
    ] = None,
    other: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL", help="Another running server.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each server that is started.")] = 2,
    clients: Annotated[str, typer.Option(metavar="N,N,...")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    starts: Annotated[int, typer.Option(min=1, help="Starts of each server that are timed.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder for compare.md, .json and .png.")] = Path(),
) -> None:
    """Measure throughput, latencies, stalls, start-up and memory of several servers in turns."""
    path = resolve(model, pull_missing=True)
    contenders = [_flashlet(path, url, threads)]
    versions: dict[str, str] = {}
    if llama_server:
        programs = LlamaCpp(llama_server.parent, llama_quantize)
        versions["llama.cpp"] = programs.version(llama_server.name)
        contenders += [_llama(programs, llama_server.name, path, kind, threads) for kind in llama_format]
    contenders += [
        Contender(name, url=address) for name, _, address in (item.partition("=") for item in other or ())
    ]
    scenarios = _scenarios([int(number) for number in clients.split(",")])
    comparison = Comparison(tuple(contender.name for contender in contenders))
    prompts = PromptMaker(load_tokenizer(path), seed=time.time_ns())  # other prompts than in the last run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    try:
        _measure_starts(contenders, starts, comparison)
        for number in range(rounds):
            for scenario in scenarios:
                for contender in contenders[:: (-1) ** number]:  # nobody is always first
                    _run(scenario, contender, contenders, prompts, comparison)
        for contender in filter(lambda item: item.is_ours, contenders):
            comparison.add(
                "after the last round", contender.name, {"memory, MB": contender.resident_bytes() / 1e6}
            )
    finally:
        for contender in contenders:
            contender.stop()
    _write(comparison, versions, output)


def _flashlet(path: Path, url: str | None, threads: int) -> Contender:
    if url:
        return Contender("flashlet", url=url)
    command = (sys.executable, "-m", "flashlet.serving.cli", "serve", path, "--threads", str(threads))
    return Contender("flashlet", command=command)


def _llama(programs: LlamaCpp, program: str, path: Path, kind: str, threads: int) -> Contender:
    """llama-server as it comes: continuous batching and prompt cache are on by default."""
    model = path if kind == "original" else programs.requantized(path, kind)
    command = (
        programs.folder / program, "-m", model, "-t", str(threads), "-np", str(_SLOTS),
        "-c", str(_SLOTS * _CONTEXT), "--host", "127.0.0.1",
    )  # fmt: skip
    return Contender(f"llama.cpp {kind}", command=command, environment=programs.environment)


def _scenarios(clients: Sequence[int]) -> list[Scenario]:
    short = [Load(number, SHORT, answers_per_client=2) for number in clients]
    long = [Load(number, LONG, answers_per_client=1) for number in clients]
    return [*short, *long, FirstToken(), Interruption()]


def _measure_starts(contenders: Sequence[Contender], starts: int, comparison: Comparison) -> None:
    """Time several starts of each; the servers of the last one stay."""
    ours = [contender for contender in contenders if contender.is_ours]
    for contender in ours:  # the first start fills caches: of weights, of files, of compiled Python
        contender.start()
    for _ in range(starts):
        for contender in ours:
            contender.stop()
            metrics = {"ready after, ms": 1e3 * contender.start()}
            comparison.add(
                "start", contender.name, {**metrics, "memory, MB": contender.resident_bytes() / 1e6}
            )


def _run(
    scenario: Scenario,
    contender: Contender,
    contenders: Sequence[Contender],
    prompts: PromptMaker,
    comparison: Comparison,
) -> None:
    """One scenario on one server; warns if another server is not idle meanwhile."""
    time.sleep(_PAUSE)
    others = [item for item in contenders if item is not contender]
    before = [item.cpu_seconds() for item in others]
    begin = time.perf_counter()
    metrics = uvloop.run(scenario.run(contender.endpoint, prompts))
    duration = time.perf_counter() - begin
    for item, seconds in zip(others, before, strict=True):
        share = (item.cpu_seconds() - seconds) / duration
        if share > _IDLE_SHARE:
            typer.echo(f"warning: {item.name} used {share:.0%} of a CPU while it should be idle", err=True)
    comparison.add(scenario.name, contender.name, metrics)
    results = ", ".join(f"{name} {value:,.1f}" for name, value in metrics.items())
    typer.echo(f"{scenario.name}: {contender.name}: {results}", err=True)


def _write(comparison: Comparison, versions: dict[str, str], folder: Path) -> None:
    environment = {**describe_environment(), **versions}
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{environment_lines(environment)}\n\n{comparison.markdown()}"
    (folder / "compare.md").write_text(text)
    result = msgspec.json.encode({"environment": environment, **comparison.to_json()})
    (folder / "compare.json").write_bytes(msgspec.json.format(result))
    draw_chart(comparison, f"{environment['machine']}, {environment['date']}", folder / "compare.png")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
