"""`flashlet distill`: a small model that drafts for a larger one, or a student that takes its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashlet.model.errors import MissingExtraError
from flashlet.serving.cli import options as opt

if TYPE_CHECKING:
    from flashlet.serving.distill.draft_run import DraftRun

distill = typer.Typer(
    help="Make a draft model for speculative decoding, or a smaller model, from a model's own answers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

CorpusArgument = Annotated[
    list[Path],
    typer.Option("--corpus", metavar="FOLDER", help="Made by `flashlet distill data`; may be repeated."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", file_okay=False, help="Folder of the training run.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Name, ORG/REPO or path.", show_default="the default of `flashlet models`"),
]
SecondsOption = Annotated[float, typer.Option(min=0.0, help="Stop after that many seconds; 0: no limit.")]
SeedOption = Annotated[int, typer.Option(help="The same seed and options give the same result.")]


def layer_numbers(text: str) -> tuple[int, ...]:
    """Parser of the option --features."""
    try:
        layers = tuple(int(layer) for layer in text.split(",")) if text else ()
    except ValueError:
        layers = (-1,)
    if any(layer < 0 for layer in layers):
        raise typer.BadParameter(f"expected numbers of layers such as 8,16,30, got {text!r}")
    return layers


@distill.command()
def data(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", file_okay=False, help="Where the corpus goes.")],
    model: ModelOption = None,
    tokens: Annotated[int, typer.Option(min=1, help="Write at least so many tokens.")] = 2_000_000,
    seconds: SecondsOption = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="Conversations at a time.")] = 32,
    features: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Keep the residual stream after so many layers; the last number is the model's.",
            show_default="those of the shipped draft, else a quarter, a half and all",
        ),
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help='First turns of users as JSON Lines, {"prompt": ..., "kind": ...}: what you will ask.',
            show_default="some thousand that come with flashlet",
        ),
    ] = None,
    seed: SeedOption = 0,
    threads: opt.ThreadsOption = 0,
) -> None:
    """Let the model answer requests, written ones and some of its own.

    Interrupted, it goes on where it was when it is started again.

    flashlet distill data corpus --tokens 500000
    """
    from flashlet.serving.cli.resolving import local_engine, resolve_model
    from flashlet.serving.distill.generation import GenerationOptions, write_corpus
    from flashlet.serving.loading import LoadOptions

    options = GenerationOptions(tokens, seconds or float("inf"), concurrency, prompts=prompts)
    load_options = LoadOptions(threads=threads, max_sequences=concurrency, draft="none")
    with local_engine(model, load_options) as loaded:
        write_corpus(loaded, resolve_model(model), folder, layer_numbers(features), seed, options, _report)


@distill.command()
def train(
    context: typer.Context,
    run: RunArgument,
    corpus: CorpusArgument,
    model: ModelOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to see, repetitions included.")] = 10_000_000,
    seconds: SecondsOption = 0.0,
    vocab: Annotated[
        int,
        typer.Option(min=1, help="Most frequent tokens that can be drafted; fastest in multiples of 256."),
    ] = 8192,
    features: Annotated[
        str, typer.Option(metavar="N,N,...", help="Inputs.", show_default="all of the corpus")
    ] = "",
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of the draft.")] = 1,
    attention: Annotated[bool, typer.Option(help="Layers that attend, or feed-forward ones only.")] = False,
    bits: Annotated[int, typer.Option(help="Of a weight: 4, which the draft is trained for, or 8.")] = 4,
    rollout: Annotated[int, typer.Option(min=1, help="Drafted tokens in a rollout.")] = 2,
    start_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Begin with this draft, whose shape and vocabulary stay."
        ),
    ] = None,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16", help="Multiply in bfloat16, for the target as well: faster on some processors."
        ),
    ] = False,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 5e-4,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows in a batch, padding included.")] = 256,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="Evaluate and save so often.")] = 600.0,
    seed: SeedOption = 0,
) -> None:
    """Train a draft, or go on with a run that was interrupted; its shape is fixed when it begins.

    flashlet distill train run --corpus corpus --seconds 3600
    """
    if start_from is not None:
        _refuse_given(context, ("vocab", "features", "layers", "attention", "bits"), "--start-from")
    opened = _open(run, model, corpus)
    from flashlet.serving.distill.draft_run import DraftShape
    from flashlet.serving.distill.training import TrainingOptions

    if opened.exists and start_from is not None:
        _report(f"{run} has begun: it goes on with its own weights, not with {start_from}")
    elif start_from is not None:
        opened.begin_with(start_from)
    elif not opened.exists:
        shape = DraftShape(vocab, layer_numbers(features), layers, attention, bits=bits)
        _report(f"the draft's vocabulary covers {opened.begin(shape, seed):.1%} of the answers")
    options = TrainingOptions(
        num_rows=rows,
        seconds=seconds or float("inf"),
        batch_rows=batch_rows,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
        bf16=bf16,
    )
    opened.train(options, rollout, _report)


@distill.command("eval")
def evaluate(
    run: RunArgument,
    corpus: CorpusArgument,
    model: ModelOption = None,
    positions: Annotated[int, typer.Option(min=1, help="Drafted tokens to judge.")] = 4,
) -> None:
    """Acceptance of the best weights on held-out conversations, by position and kind, as JSON.

    flashlet distill eval run --corpus corpus
    """
    import msgspec

    from flashlet.serving.distill.evaluation import StepCosts

    result = _open(run, model, corpus).evaluate(positions).as_dict(StepCosts())
    print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


@distill.command()
def export(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="A .safetensors file.")],
    corpus: CorpusArgument,
    model: ModelOption = None,
) -> None:
    """Write the best weights as a draft that `flashlet serve --draft FILE` loads.

    flashlet distill export run draft.safetensors --corpus corpus
    """
    said = _open(run, model, corpus).export(file, {})
    _report(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {said}")


@distill.command()
def student(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", file_okay=False, help="Where the student goes.")
    ],
    corpus: CorpusArgument,
    layers: Annotated[int, typer.Option(min=1, help="Layers that the student keeps.")],
    model: ModelOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to see, repetitions included.")] = 10_000_000,
    seconds: SecondsOption = 0.0,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 3e-4,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows in a batch, padding included.")] = 512,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="Save so often.")] = 600.0,
    seed: SeedOption = 0,
) -> None:
    """Drop layers of a model, train the rest on its distribution, and write a folder that can be served.

    flashlet distill student small --corpus corpus --layers 20 --seconds 3600
    """
    _need_torch()
    from flashlet.serving.cli.resolving import resolve_model
    from flashlet.serving.distill.corpus import Corpus
    from flashlet.serving.distill.student import StudentRun
    from flashlet.serving.distill.training import TrainingOptions

    options = TrainingOptions(
        num_rows=rows,
        seconds=seconds or float("inf"),
        batch_rows=batch_rows,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
    )
    run = StudentRun(folder, resolve_model(model), [Corpus(path) for path in corpus])
    run.run(layers, options, _report)


def _open(run: Path, model: str | None, corpora: list[Path]) -> DraftRun:
    _need_torch()
    from flashlet.serving.cli.resolving import resolve_model
    from flashlet.serving.distill.corpus import Corpus
    from flashlet.serving.distill.draft_run import DraftRun

    return DraftRun(run, resolve_model(model), [Corpus(path) for path in corpora])


def _refuse_given(context: typer.Context, names: Sequence[str], because: str) -> None:
    """Options that mean nothing beside another one are not ignored."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"expected none with {because}", param_hint=f"--{name}")


def _need_torch() -> None:
    # Read when torch is imported: threads that wait for others spin some tens of microseconds, which is what
    # most waits take, and do not keep a core from them for longer.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    if find_spec("torch") is None or find_spec("accelerate") is None:
        raise MissingExtraError("training needs torch: pip install 'flashlet[torch]'")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
