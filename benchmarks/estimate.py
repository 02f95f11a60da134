"""How far predictions are off: /v1/estimate, asked before each of many mixed requests under load.

Needs a server that does nothing else, for a minute or two:  python benchmarks/estimate.py http://127.0.0.1:8000
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import msgspec
import typer
import uvloop
from prompts import PromptMaker

from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.tokenizer import load_tokenizer

_TIMEOUT = httpx.Timeout(900)
_WARM_UP = 2  # requests of each client that are not counted: the server learns what steps cost


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; milliseconds."""

    prompt_tokens: int
    may_end: bool  # whether the model may end the answer, or else its length is known
    expected: tuple[float, float]  # to the first token, in total
    actual: tuple[float, float]

    def error(self, which: int) -> float:
        """Relative to the actual time; above 0: it was faster than expected."""
        return self.expected[which] / self.actual[which] - 1


def main(
    url: Annotated[str, typer.Argument(help="A running server.")],
    model: Annotated[str, typer.Option(help="What it serves, for the tokenizer.")] = DEFAULT_MODEL,
    requests: Annotated[int, typer.Option(min=10, help="Requests that are counted.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask again and again.")] = 12,
    longest: Annotated[int, typer.Option(min=32, help="Most tokens of a prompt.")] = 1000,
    max_tokens: Annotated[int, typer.Option(min=8, help="Most tokens of an answer.")] = 192,
) -> None:
    """Measure the errors of predicted times, as clients see them."""
    prompts = PromptMaker(load_tokenizer(resolve(model)), seed=time.time_ns())
    samples = uvloop.run(_run(url, prompts, clients, requests, longest, max_tokens))
    _report(samples)


async def _run(
    url: str, prompts: PromptMaker, clients: int, requests: int, longest: int, max_tokens: int
) -> list[Sample]:
    rng = random.Random(0)
    samples: list[Sample] = []
    limits = httpx.Limits(max_connections=2 * clients)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as http:

        async def client() -> None:
            asked = 0
            while len(samples) < requests:
                length = int(20 * (longest / 20) ** rng.random())
                body = {
                    "prompt": prompts.prompt(length),
                    "max_tokens": int(8 * (max_tokens / 8) ** rng.random()),
                    "ignore_eos": rng.random() < 0.5,
                }
                sample = await _measure(http, body)
                asked += 1
                if asked > _WARM_UP and sample is not None:
                    samples.append(sample)
                await asyncio.sleep(rng.uniform(0, 0.2))

        await asyncio.gather(*(client() for _ in range(clients)))
    return samples


async def _measure(http: httpx.AsyncClient, body: dict[str, Any]) -> Sample | None:
    """Ask for an estimate and then for the answer; None if the server knew nothing yet."""
    answer = await http.post("/v1/estimate", json={"endpoint": "/v1/completions", **body})
    estimate = answer.raise_for_status().json()
    sent = time.perf_counter()
    first = last = 0.0
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                error = msgspec.json.decode(line[6:]).get("error")
                if error is not None:
                    raise RuntimeError(error["message"])
                last = time.perf_counter()
                first = first or last
    if estimate["ttft_ms"] is None:
        return None
    return Sample(
        estimate["prompt_tokens"],
        not body["ignore_eos"],
        (estimate["ttft_ms"], estimate["total_ms"]),
        (1e3 * (first - sent), 1e3 * (last - sent)),
    )


def _report(samples: list[Sample]) -> None:
    """Print medians and 90th percentiles of the errors' sizes, and the median error, which is the bias."""
    groups = {
        "all": samples,
        "answers of a known length": [sample for sample in samples if not sample.may_end],
        "answers that may end": [sample for sample in samples if sample.may_end],
        "prompts up to 100 tokens": [sample for sample in samples if sample.prompt_tokens <= 100],
        "longer prompts": [sample for sample in samples if sample.prompt_tokens > 100],
    }
    typer.echo("| | requests | first token, ms | error | p90 | bias | total, ms | error | p90 | bias |")
    typer.echo("|---" * 10 + "|")
    for name, group in groups.items():
        if not group:
            continue
        cells = [name, str(len(group))]
        for which in (0, 1):
            errors = [sample.error(which) for sample in group]
            sizes = sorted(map(abs, errors))
            cells += [
                f"{statistics.median(sample.actual[which] for sample in group):.0f}",
                f"{100 * statistics.median(sizes):.0f} %",
                f"{100 * sizes[int(0.9 * len(sizes))]:.0f} %",
                f"{100 * statistics.median(errors):+.0f} %",
            ]
        typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
