"""What structured output costs: decoding speed with a JSON schema and without one, in turns."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Annotated

import typer
from environment import describe_environment, environment_lines
from prompts import PromptMaker

from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.model.sampling import SamplingParams
from flashlet.model.tokenizer import Tokenizer
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.grammar import CompiledGrammar, Grammar
from flashlet.serving.engine.grammar_compiler import GrammarCompiler
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.loading import LoadOptions, load_engine

_PROMPT = 32  # tokens
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "email": {"type": "string", "format": "email"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "hobbies": {"type": "array", "items": {"enum": ["chess", "hiking", "reading"]}},
    },
    "required": ["name", "email", "age", "hobbies"],
    "additionalProperties": False,
}
_SCHEMA = {"type": "array", "items": _PERSON, "minItems": 1000}  # so that no answer ends early


def main(
    model: Annotated[str, typer.Argument(help="GGUF file or name of a pulled model.")] = DEFAULT_MODEL,
    sequences: Annotated[int, typer.Option(min=1)] = 16,
    tokens: Annotated[int, typer.Option(min=2, help="Per answer.")] = 128,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measure both, round by round, without HTTP and without speculation."""
    loaded = load_engine(resolve(model, pull_missing=True), LoadOptions(threads=threads))
    tokenizer, config = loaded.tokenizer, loaded.config
    compiler = GrammarCompiler(tokenizer, config.vocab_size, config.eos_token_ids)
    grammar = asyncio.run(compiler.compile(Grammar.json_schema(_SCHEMA)))
    samples: list[tuple[float, float]] = []
    for number in range(-1, rounds):  # the first one warms up
        free = _speed(loaded.engine, _requests(tokenizer, sequences, tokens, number, None))
        masked = _speed(loaded.engine, _requests(tokenizer, sequences, tokens, number, grammar))
        if number >= 0:
            samples.append((free, masked))
    free, masked = (statistics.median(speeds) for speeds in zip(*samples, strict=True))
    ratio = statistics.median(masked / free for free, masked in samples)
    typer.echo(environment_lines(describe_environment()))
    typer.echo(f"\ndecode, {sequences} sequences, {tokens} tokens each, medians of {rounds} rounds:\n")
    typer.echo(
        f"- free text: {free:.0f} tokens/s\n- JSON schema: {masked:.0f} tokens/s\n- ratio: {ratio:.3f}"
    )


def _requests(
    tokenizer: Tokenizer, sequences: int, tokens: int, seed: int, grammar: CompiledGrammar | None
) -> list[GenerationRequest]:
    prompts = PromptMaker(tokenizer, seed)
    return [
        GenerationRequest(
            tuple(tokenizer.encode(prompts.prompt(_PROMPT))),
            SamplingParams(seed=number),
            max_tokens=tokens,
            ignore_eos=True,
            grammar=grammar,
            draft="none",
        )
        for number in range(sequences)
    ]


def _speed(engine: Engine, requests: list[GenerationRequest]) -> float:
    """Tokens per second from the first token of the last request on."""
    for request in requests:
        engine.submit(request)
    missing, num_tokens, started = len(requests), 0, 0.0
    while engine.has_work:
        for _, event in engine.step():
            assert isinstance(event, TokenEvent), event
            missing -= event.num_output_tokens == 1
            num_tokens += missing == 0
        if not missing and not started:
            started, num_tokens = time.perf_counter(), 0
    return num_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    typer.run(main)
