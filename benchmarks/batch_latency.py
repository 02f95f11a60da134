"""Time to the first token of live requests, alone and while a batch runs, in turns: two or three minutes.

Needs a server that does nothing else:  python benchmarks/batch_latency.py http://127.0.0.1:8000
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from typing import Annotated, Any

import httpx
import typer
import uvloop
from prompts import PromptMaker
from stream_client import Endpoint, complete

from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.tokenizer import load_tokenizer

_WARM_UP = 3.0  # seconds until a batch has reached its full width
_PAUSE = 0.1, 0.5  # seconds between two live requests, at random: they arrive anywhere in a step
_LINES = 800  # more than are answered in a round
_UNCOUNTED = 3  # requests before the first round
_CONNECT = httpx.Timeout(60)


def main(
    url: Annotated[str, typer.Argument(help="A running server.")],
    model: Annotated[str, typer.Option(help="What it serves, for the tokenizer.")] = DEFAULT_MODEL,
    prompt_tokens: Annotated[str, typer.Option(metavar="N,N,...", help="Of live requests.")] = "30,500",
    batch_prompt_tokens: Annotated[int, typer.Option(min=1)] = 200,
    requests: Annotated[int, typer.Option(min=2, help="Live requests of each length and round.")] = 15,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure how much longer the first token takes while a batch runs."""
    prompts = PromptMaker(load_tokenizer(resolve(model)), seed=time.time_ns())
    lengths = [int(length) for length in prompt_tokens.split(",")]
    samples: dict[tuple[int, bool], list[float]] = {}
    with httpx.Client(base_url=url, timeout=_CONNECT) as client:
        served = client.get("/v1/models").json()["data"][0]["id"]
        address = httpx.URL(url)
        endpoint = Endpoint(address.host, address.port or 80, served)
        uvloop.run(_ttfts(endpoint, prompts, lengths[0], _UNCOUNTED))
        for _ in range(rounds):
            for busy in (False, True):
                batch = _start_batch(client, prompts, batch_prompt_tokens) if busy else None
                for length in lengths:
                    samples.setdefault((length, busy), []).extend(
                        uvloop.run(_ttfts(endpoint, prompts, length, requests))
                    )
                if batch is not None:
                    _end_batch(client, batch)
    _report(lengths, samples)


async def _ttfts(endpoint: Endpoint, prompts: PromptMaker, length: int, requests: int) -> list[float]:
    """Times to the first token, in seconds, of one request after the other."""
    ttfts = []
    for _ in range(requests):
        await asyncio.sleep(random.uniform(*_PAUSE))
        ttfts.append((await complete(endpoint, prompts.prompt(length), 8)).answer().ttft)
    return ttfts


def _start_batch(client: httpx.Client, prompts: PromptMaker, prompt_tokens: int) -> dict[str, Any]:
    """A running batch of new prompts."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompts.prompt(prompt_tokens), "max_tokens": 128, "ignore_eos": True},
        }
        for number in range(_LINES)
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    upload = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    body = {
        "input_file_id": upload.raise_for_status().json()["id"],
        "endpoint": "/v1/completions",
        "completion_window": "1h",
    }
    batch: dict[str, Any] = client.post("/v1/batches", json=body).raise_for_status().json()
    time.sleep(_WARM_UP)
    return {**batch, "begin": time.perf_counter()}


def _end_batch(client: httpx.Client, batch: dict[str, Any]) -> None:
    seconds = time.perf_counter() - batch["begin"] + _WARM_UP
    answered = client.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"]
    client.post(f"/v1/batches/{batch['id']}/cancel").raise_for_status()
    while client.get(f"/v1/batches/{batch['id']}").json()["status"] != "cancelled":
        time.sleep(0.1)
    client.delete(f"/v1/files/{batch['input_file_id']}").raise_for_status()
    typer.echo(f"the batch: {answered / seconds:.2f} lines/s", err=True)


def _report(lengths: list[int], samples: dict[tuple[int, bool], list[float]]) -> None:
    """Print medians and 90th percentiles, in ms, and their ratios."""
    typer.echo(
        "| prompt | alone, ms | p90 | beside a batch, ms | p90 | ratio | of p90 |\n" + "|---" * 7 + "|"
    )
    for length in lengths:
        alone, beside = (_median_and_p90(samples[length, busy]) for busy in (False, True))
        times = " | ".join(f"{1e3 * value:.1f}" for value in (*alone, *beside))
        ratios = " | ".join(f"{busy / idle:.2f}" for idle, busy in zip(alone, beside, strict=True))
        typer.echo(f"| {length} | {times} | {ratios} |")


def _median_and_p90(values: list[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=10)[-1]


if __name__ == "__main__":
    typer.run(main)
