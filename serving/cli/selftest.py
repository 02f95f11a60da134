"""`flashlet selftest`: whether a server keeps the promises of the wire."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from flashlet.serving.cli.errors import ExitCode

if TYPE_CHECKING:
    from flashlet.serving.selftest.run import Outcome
    from flashlet.serving.selftest.server import Server


def selftest(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Server to test, ours or another.",
            show_default="one that is started for the test, with MODEL",
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FLASHLET_API_KEY", help="Key for --url.", show_envvar=True)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model in the requests; without --url the model to serve.",
            show_default="the first one that is served, or the default model",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check what clients rely on, rule by rule: errors, streams, tool calls, logprobs and so on.

    The exit code is 1 if a rule is broken. A rule that cannot be checked on this server says why.

    flashlet selftest

    flashlet selftest --url http://127.0.0.1:8080
    """
    if url is not None:
        from flashlet.serving.selftest.server import Server

        with closing(Server(url, api_key, model)) as server:
            outcomes = _run(server)
    else:
        from flashlet.serving.cli.resolving import resolve_model, served_name
        from flashlet.serving.selftest.launch import started_server

        with started_server(resolve_model(model), served_name(model)) as server:
            outcomes = _run(server)
    _write(outcomes, as_json)
    failed = any(outcome.status == "fail" for outcome in outcomes)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.OK)


def _run(server: Server) -> list[Outcome]:
    """Run all rules, with a status line on stderr if that is a terminal."""
    import httpx
    from rich.console import Console

    from flashlet.serving.errors import RequestError
    from flashlet.serving.selftest.run import run_rules

    try:
        server.get("/health")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestError(f"{server.url}: {error or type(error).__name__}") from error
    outcomes: list[Outcome] = []
    with Console(stderr=True).status("") as status:
        for outcome in run_rules(server):
            outcomes.append(outcome)
            status.update(f"{len(outcomes)} rules checked")
    return outcomes


def _write(outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(outcomes)).decode() + "\n")
        return
    from rich.console import Console

    from flashlet.serving.selftest.table import print_outcomes

    print_outcomes(outcomes, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
