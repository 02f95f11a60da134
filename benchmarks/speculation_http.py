"""Speed of one client's answers from several servers, in turns by prompt: what speculation is worth there.

Each argument is a running server, the first one is compared with the others; a server with drafts may stand
beside the same one without, or beside another program:

    python benchmarks/speculation_http.py drafts=http://127.0.0.1:8000 none=http://127.0.0.1:8001
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from comparison import Comparison
from environment import describe_environment, environment_lines
from prompts import prompts_by_kind

_TIMEOUT = httpx.Timeout(600)


def main(
    servers: Annotated[list[str], typer.Argument(metavar="NAME=URL...", help="Running servers.")],
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=16, help="Longest answer.")] = 128,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each kind.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample here.")] = None,
) -> None:
    """Tokens per second of whole answers, by kind of prompt."""
    clients = {}
    for server in servers:
        name, separator, url = server.partition("=")
        if not separator:
            raise typer.BadParameter(f"expected NAME=URL, got {server!r}")
        clients[name] = httpx.Client(base_url=url, timeout=_TIMEOUT)
    comparison = Comparison(tuple(clients))
    for client in clients.values():
        _ask(client, "Hello!", 0.0, max_tokens)
    order = list(clients)
    for number, (kind, prompt) in enumerate(prompts_by_kind(limit)):
        for name in order:
            speed = _ask(clients[name], prompt, temperature, max_tokens)
            for scenario in ("all", kind):
                comparison.add(scenario, name, {"tokens/s, whole answer": speed})
        order.append(order.pop(0))
        typer.echo(f"\r{number + 1} prompts  ", err=True, nl=False)
    typer.echo(err=True)
    environment = {**describe_environment(), "temperature": str(temperature), "servers": " ".join(servers)}
    typer.echo(f"{environment_lines(environment)}\n\n{comparison.markdown()}")
    if json_file is not None:
        result = msgspec.json.encode({"environment": environment, **comparison.to_json()})
        json_file.write_bytes(msgspec.json.format(result))


def _ask(client: httpx.Client, prompt: str, temperature: float, max_tokens: int) -> float:
    """Tokens per second from the request to the end of the answer."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": temperature,
        "seed": 1,
        "max_tokens": max_tokens,
    }
    started = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body).raise_for_status()
    seconds = time.perf_counter() - started
    return float(response.json()["usage"]["completion_tokens"]) / seconds


if __name__ == "__main__":
    typer.run(main)
