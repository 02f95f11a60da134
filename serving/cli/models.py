"""`flashlet pull`, `flashlet models` and `flashlet inspect`: what is there, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from flashlet.model.executor import WeightDtype

if TYPE_CHECKING:
    from flashlet.model.config import ModelConfig
    from flashlet.model.weights import WeightSource

WEIGHT_DTYPES: tuple[WeightDtype, ...] = get_args(WeightDtype)
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, ORG/REPO or path.", show_default=False)
]


def pull(model: ModelName) -> None:
    """Bring a model into the store and verify it; an interrupted pull goes on where it stopped.

    flashlet pull smollm2-135m-instruct

    flashlet pull Qwen/Qwen3-0.6B
    """
    from flashlet.serving.cli.resolving import pull_with_progress

    print(pull_with_progress(model))


def models() -> None:
    """List the models that are known by name, and those in the store."""
    from rich.console import Console
    from rich.table import Table

    from flashlet.model.registry import DEFAULT_MODEL, known_models, pulled_models
    from flashlet.serving.config import format_bytes

    pulled = {model.name: model for model in pulled_models()}
    table = Table(box=None, pad_edge=False)
    for heading in ("Name", "Parameters", "License", "Pulled"):
        table.add_column(heading, no_wrap=True)
    for entry in known_models():
        size = format_bytes(pulled.pop(entry.name).size) if entry.name in pulled else "no"
        table.add_row(entry.name, _count(entry.parameters), entry.license, size)
    for model in pulled.values():
        table.add_row(model.name, "", "", format_bytes(model.size))
    console = Console()
    console.print(table)
    console.print(f"\nThe default is {DEFAULT_MODEL}.", highlight=False)


def inspect(
    model: ModelName,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template as well.")] = False,
) -> None:
    """Show a model's shape, parameters, formats, context and template, without loading it.

    flashlet inspect smollm2-135m-instruct --template
    """
    from rich.console import Console
    from rich.table import Table

    from flashlet.model.registry import resolve
    from flashlet.model.tokenizer import load_tokenizer
    from flashlet.model.weights import open_weights

    path = resolve(model)
    source = open_weights(path)
    chat_template = load_tokenizer(path).chat_template
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("path", str(path))
    for name, value in {**_shape(source.config), **_sizes(source)}.items():
        table.add_row(name, value)
    table.add_row("chat template", f"{len(chat_template):,} characters" if chat_template else "none")
    source.close()
    console = Console()
    console.print(table)
    if template and chat_template:
        console.print("", chat_template, sep="\n", markup=False, highlight=False)


def _shape(config: ModelConfig) -> dict[str, str]:
    """What the configuration says, in words."""
    window = f", sliding window {max(config.sliding_windows)}" if any(config.sliding_windows) else ""
    scaling = "" if config.rope.scaling == "none" else f", RoPE scaling {config.rope.scaling}"
    head = "shared with" if config.tie_word_embeddings else "separate from"
    return {
        "architecture": config.architecture,
        "layers": str(config.num_layers),
        "hidden size": f"{config.hidden_size}, feed-forward {config.intermediate_size}",
        "heads": f"{config.num_heads} of {config.head_dim}, {config.num_kv_heads} for keys and values",
        "context": f"{config.context_length:,} tokens{window}{scaling}",
        "vocabulary": f"{config.vocab_size:,} tokens, output head {head} the embedding",
    }


def _sizes(source: WeightSource) -> dict[str, str]:
    """Parameters, and bytes in the file and in memory."""
    from flashlet.serving.config import format_bytes
    from flashlet.serving.memory import kv_bytes_per_token, parameter_count, weight_bytes

    config = source.config
    stored = (f"{kind} {count:,} in {format_bytes(size)}" for kind, (count, size) in source.formats().items())
    return {
        "parameters": f"{parameter_count(config):,}",
        "in the file": ", ".join(stored),
        "in memory": ", ".join(
            f"{format_bytes(weight_bytes(config, dtype))} as {dtype}" for dtype in WEIGHT_DTYPES
        ),
        "KV cache": f"{format_bytes(kv_bytes_per_token(config, 'int8'))} per token as int8",
    }


def _count(parameters: int) -> str:
    """Write a number of parameters as model names do: 135M, 1.7B."""
    return f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"
