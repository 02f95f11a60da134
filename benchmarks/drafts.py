"""What drafts are worth if steps cost what is said here, whatever the machine does: only tokens count.

Every draft meets the same prompts with the same policy, greedy or sampled, one client. Speeds are relative to
plain decoding at the same costs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from prompts import prompts_by_kind

from flashlet.kernels.cpu import StepCosts
from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.sampling import SamplingParams
from flashlet.serving.config import MemoryAmount
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.loading import LoadOptions, load_engine

_KV_BYTES = 1 << 28
_NEVER_OFF = 1e6  # what steps take says nothing here: beside such costs it is nothing


class FixedCosts(StepCosts):
    """A plain step costs 1; adds up what decode steps cost."""

    known = drafts_known = True

    def __init__(self, row: float, first_drafted: float, drafted: float) -> None:
        super().__init__()
        self._row, self._first_drafted, self._drafted = row, first_drafted, drafted
        self.spent = 0.0

    def ms(self, rows: int) -> float:
        """Of a decode step."""
        return _NEVER_OFF * (1 + self._row * (rows - 1))

    def draft_ms(self, num_tokens: int) -> float:
        """Of drafting."""
        return _NEVER_OFF * (self._first_drafted + self._drafted * (num_tokens - 1)) if num_tokens else 0.0

    def verifying(self, rows: int, most: int) -> list[float]:
        """Of decode steps with 0, 1, ... `most` proposals."""
        return [self.ms(rows + count) for count in range(most + 1)]

    def drafting(self, rows: int, most: int) -> list[float]:
        """The same, if the proposals are drafted."""
        return [self.ms(rows + count) + self.draft_ms(count) for count in range(most + 1)]

    def plain_ms(self, num_sequences: int) -> float:
        """Of a decode step without proposals."""
        return self.ms(num_sequences)

    def observe(self, num_sequences: int, rows: int, num_drafted: int, ms: float) -> float:
        """Count a decode step."""
        self.spent += (self.ms(rows) + self.draft_ms(num_drafted)) / _NEVER_OFF
        return ms


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer behind its first token."""

    tokens: int
    steps: int
    cost: float  # of the steps, in plain ones


def main(
    drafts: Annotated[list[str], typer.Argument(metavar="auto|ngram|PATH...", help="Drafts to compare.")],
    model: Annotated[str, typer.Option(help="Path or name of a pulled model.")] = DEFAULT_MODEL,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Other prompts: lines of {"prompt", "kind"}.')
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=16, help="Longest answer.")] = 96,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each kind, of `--prompts` in all.")] = 1000,
    threads: Annotated[int, typer.Option(min=0)] = 0,
    row: Annotated[float, typer.Option(help="Cost of a further row, in plain steps.")] = 0.054,
    first_drafted: Annotated[float, typer.Option(help="Cost of a step's first drafted token.")] = 0.02,
    drafted: Annotated[float, typer.Option(help="Cost of a further one.")] = 0.01,
) -> None:
    """Tokens per step and speed of each draft, by kind of prompt."""
    asked = prompts_by_kind(limit) if prompts is None else _read(prompts)[:limit]
    typer.echo(
        "| draft | prompts | answers | tokens/step | speed, together | median |\n|---|---|---|---|---|---|"
    )
    for draft in drafts:
        options = LoadOptions(draft=draft, threads=threads, kv_cache=MemoryAmount(_KV_BYTES))
        loaded = load_engine(resolve(model, pull_missing=True), options)
        engine = Engine(
            loaded.executor, loaded.tokenizer, replace(loaded.engine.config, enable_prefix_cache=False)
        )
        costs = _fixed(engine, FixedCosts(row, first_drafted, drafted))
        samples: dict[str, list[Sample]] = defaultdict(list)
        for number, (kind, prompt) in enumerate(asked):
            if loaded.chat_template is None:
                raise typer.BadParameter("expected a model with a chat template")
            text = loaded.chat_template.render(
                [{"role": "user", "content": prompt}], add_generation_prompt=True
            )
            tokens = tuple(loaded.tokenizer.encode(text, add_special_tokens=False))
            sampling = SamplingParams(temperature=temperature, seed=number)
            sample = _run(engine, costs, GenerationRequest(tokens, sampling, max_tokens=max_tokens))
            if sample.tokens > 0:
                samples[kind].append(sample)
                samples["all"].append(sample)
        for kind, found in samples.items():
            typer.echo(_line(draft, kind, found))
        loaded.executor.close()


def _fixed(engine: Engine, costs: FixedCosts) -> FixedCosts:
    while engine.is_calibrating:
        engine.step()
    if engine.scheduler.drafter is None:
        raise typer.BadParameter("expected a draft, got none")
    engine.scheduler.drafter.costs = costs
    return costs


def _read(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["kind"], row["prompt"]) for row in rows]


def _run(engine: Engine, costs: FixedCosts, request: GenerationRequest) -> Sample:
    """Decode steps are those behind the prompt's."""
    engine.submit(request)
    tokens, costs.spent, steps = 0, 0.0, engine.stats().steps
    while engine.has_work:
        for _, event in engine.step():
            if not isinstance(event, TokenEvent):
                raise event
            tokens += event.token_id is not None
        if not tokens:
            steps, costs.spent = engine.stats().steps, 0.0
    return Sample(tokens - 1, engine.stats().steps - steps - 1, costs.spent)


def _line(draft: str, kind: str, samples: Sequence[Sample]) -> str:
    tokens = sum(sample.tokens for sample in samples)
    steps, cost = sum(sample.steps for sample in samples), sum(sample.cost for sample in samples)
    middle = median(sample.tokens / sample.cost for sample in samples)
    return (
        f"| {draft} | {kind} | {len(samples)} | {tokens / steps:.3f} | {tokens / cost:.3f} | {middle:.3f} |"
    )


if __name__ == "__main__":
    typer.run(main)
