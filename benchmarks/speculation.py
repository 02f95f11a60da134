"""What speculation gains: an engine with it and one without, on the same executor, in turns by prompt.

The prompts (`speculation_prompts.jsonl`) are for measuring only: no draft model was trained on them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from comparison import Comparison
from environment import describe_environment, environment_lines
from prompts import PromptMaker, prompts_by_kind

from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.sampling import SamplingParams
from flashlet.serving.config import MemoryAmount
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.sequence import Sequence as EngineSequence
from flashlet.serving.loading import LoadedEngine, LoadOptions, load_engine

_CLIENTS = 16
_WARM_TEMPERATURE, _WILD_TEMPERATURE = 0.7, 1.5
_RANDOM_TOKENS = 40  # of a prompt of random words
_KV_BYTES = 1 << 28
WITH, WITHOUT = "with drafts", "without"

Requests = Sequence[GenerationRequest]


@dataclass
class Bench:
    """Two engines over one executor; only one has sequences at a time."""

    engines: dict[str, Engine]
    comparison: Comparison = field(default_factory=lambda: Comparison((WITH, WITHOUT)))
    num_different: int = 0  # requests whose tokens depended on drafts
    _order: Iterator[tuple[str, str]] = field(
        default_factory=lambda: itertools.cycle([(WITH, WITHOUT), (WITHOUT, WITH)])
    )

    def measure(self, scenarios: Sequence[str], requests: Requests) -> None:
        """Run `requests` at once on each engine in turn, and count the result for all `scenarios`."""
        answers: dict[str, list[list[int]]] = {}
        for name in next(self._order):
            answers[name], metrics = _run(self.engines[name], requests)
            for scenario in scenarios:
                self.comparison.add(scenario, name, metrics)
        pairs = zip(answers[WITH], answers[WITHOUT], strict=True)
        self.num_different += sum(ours != theirs for ours, theirs in pairs)


def main(
    model: Annotated[str, typer.Argument(help="Path or name of a pulled model.")] = DEFAULT_MODEL,
    draft: Annotated[
        str, typer.Option(metavar="auto|ngram|PATH", help="Who proposes tokens, as for `flashlet serve`.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(min=16, help="Longest answer.")] = 128,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each kind.")] = 1000,
    threads: Annotated[int, typer.Option(min=0)] = 0,
    context: Annotated[
        int, typer.Option(min=0, help="Tokens of other prompts before each; then one client only.")
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample here.")] = None,
) -> None:
    """Tokens per second with and without speculation, and their ratio, by kind of prompt."""
    options = LoadOptions(draft=draft, threads=threads, kv_cache=MemoryAmount(_KV_BYTES))
    loaded = load_engine(resolve(model, pull_missing=True), options)
    try:
        bench = Bench(_engines(loaded))
        prompts = _behind_others(_prompts(loaded, limit), context)
        for temperature in (0.0, _WARM_TEMPERATURE):
            _one_client(bench, prompts, temperature, max_tokens)
        if not context:
            _many_clients(bench, [tokens for _, tokens in prompts], max_tokens)
            _random_text(bench, loaded, min(limit, 16), max_tokens)
        _write(bench, loaded, json_file)
    finally:
        loaded.executor.close()


def _engines(loaded: LoadedEngine) -> dict[str, Engine]:
    """Without prefix caches, since each would believe that it alone writes the KV pool."""
    config = replace(loaded.engine.config, enable_prefix_cache=False)
    speculating = Engine(loaded.executor, loaded.tokenizer, config)
    while speculating.is_calibrating:
        speculating.step()
    plain = Engine(loaded.executor, loaded.tokenizer, replace(config, draft="none"))
    return {WITH: speculating, WITHOUT: plain}


def _prompts(loaded: LoadedEngine, limit: int) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and tokens of every prompt, kinds in turns."""
    template = loaded.chat_template
    if template is None:
        raise typer.BadParameter("expected a model with a chat template")
    result = []
    for kind, prompt in prompts_by_kind(limit):
        text = template.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
        result.append((kind, tuple(loaded.tokenizer.encode(text, add_special_tokens=False))))
    return result


def _behind_others(
    prompts: list[tuple[str, tuple[int, ...]]], count: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Each prompt behind `count` tokens of those that follow it, from the first again after the last."""
    everything = [token for _, tokens in prompts for token in tokens]
    result, end = [], 0
    for kind, tokens in prompts:
        end += len(tokens)
        before = (everything[(end + index) % len(everything)] for index in range(count))
        result.append((kind, (*before, *tokens)))
    return result


def _one_client(
    bench: Bench, prompts: list[tuple[str, tuple[int, ...]]], temperature: float, max_tokens: int
) -> None:
    title = _title(1, temperature)
    for number, (kind, tokens) in enumerate(prompts):
        request = GenerationRequest(tokens, _sampling(temperature, number), max_tokens=max_tokens)
        bench.measure([f"{title}: {kind}", f"{title}: all"], [request])
        typer.echo(f"\r{title}: {number + 1} of {len(prompts)}  ", err=True, nl=False)
    typer.echo(err=True)


def _many_clients(bench: Bench, prompts: list[tuple[int, ...]], max_tokens: int) -> None:
    for temperature in (0.0, _WARM_TEMPERATURE):
        scenario = _title(_CLIENTS, temperature)
        for start in range(0, len(prompts) - _CLIENTS + 1, _CLIENTS):
            requests = [
                GenerationRequest(tokens, _sampling(temperature, n), max_tokens=max_tokens, ignore_eos=True)
                for n, tokens in enumerate(prompts[start : start + _CLIENTS])
            ]
            bench.measure([scenario], requests)


def _random_text(bench: Bench, loaded: LoadedEngine, count: int, max_tokens: int) -> None:
    maker = PromptMaker(loaded.tokenizer)
    for number in range(count):
        tokens = tuple(loaded.tokenizer.encode(maker.prompt(_RANDOM_TOKENS)))
        for temperature in (0.0, _WILD_TEMPERATURE):
            sampling = _sampling(temperature, number)
            request = GenerationRequest(tokens, sampling, max_tokens=max_tokens, ignore_eos=True)
            bench.measure([f"{_title(1, temperature)}: random words"], [request])


def _title(clients: int, temperature: float) -> str:
    many = "s" if clients > 1 else ""
    return f"{clients} client{many}, " + (f"temperature {temperature}" if temperature else "greedy")


def _sampling(temperature: float, seed: int) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=seed)


def _run(engine: Engine, requests: Requests) -> tuple[list[list[int]], dict[str, float]]:
    """The answers, and the speed of all and of what came after everybody's first token."""
    steps = engine.stats().steps
    started = time.perf_counter()
    answers: dict[EngineSequence, list[int]] = {engine.submit(request): [] for request in requests}
    first, before = started, 0  # when the last of the first tokens came, and how many there were then
    while engine.has_work:
        waiting = not all(answers.values())
        for sequence, event in engine.step():
            if not isinstance(event, TokenEvent):
                raise event
            if event.token_id is not None:
                answers[sequence].append(event.token_id)
        if waiting:
            first, before = time.perf_counter(), sum(map(len, answers.values()))
    ended = time.perf_counter()
    tokens = sum(map(len, answers.values()))
    metrics = {
        "tokens/s, whole answer": tokens / (ended - started),
        "tokens/step": tokens / (engine.stats().steps - steps),
        "first token, ms": 1e3 * (first - started),
    }
    if tokens > before:
        metrics["tokens/s, decoding"] = (tokens - before) / (ended - first)
    return [*answers.values()], metrics


def _write(bench: Bench, loaded: LoadedEngine, json_file: Path | None) -> None:
    stats = bench.engines[WITH].stats()
    environment = {
        **describe_environment(),
        "executor": loaded.executor.name,
        "draft model": "yes" if loaded.executor.max_draft_tokens else "none: n-grams only",
        "accepted": f"{stats.accepted_tokens} of {stats.draft_tokens} tokens, proposed {stats.drafts} times",
        "answers that differ": str(bench.num_different),
    }
    typer.echo(f"{environment_lines(environment)}\n\n{bench.comparison.markdown()}")
    if json_file is not None:
        result = msgspec.json.encode(
            {
                "environment": environment,
                "accepted_per_position": stats.accepted_per_position,
                **bench.comparison.to_json(),
            }
        )
        json_file.write_bytes(msgspec.json.format(result))


if __name__ == "__main__":
    typer.run(main)
