"""`flashlet serve`: the HTTP server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashlet.serving.cli import options as opt

if TYPE_CHECKING:
    from flashlet.serving.api.config import ServerConfig
    from flashlet.serving.loading import LoadOptions

SCHEDULING = "Scheduling"
LISTENING = "Listening"
BATCHES = "Files and batches"
RETRIES = "Retries and repeats"
RESPONSES = "Responses"


def serve(
    model: opt.ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=LISTENING)] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.", rich_help_panel=LISTENING),
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name that requests use; may be given several times.",
            show_default="MODEL, or the name of its file",
            rich_help_panel=LISTENING,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar="FLASHLET_API_KEY",
            help="Ask every request for this key; may be given several times (the variable: with spaces).",
            show_default="no key is needed",
            rich_help_panel=LISTENING,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help='Let web pages of this origin in, "*" for any; may be given several times.',
            rich_help_panel=LISTENING,
        ),
    ] = None,
    drain_timeout: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Time to finish after SIGTERM.", rich_help_panel=LISTENING
        ),
    ] = 30.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="What to log on stderr.", rich_help_panel=LISTENING),
    ] = "warning",
    max_sequences: Annotated[
        int, typer.Option(min=1, help="Most sequences that run at once.", rich_help_panel=SCHEDULING)
    ] = 64,
    max_waiting: Annotated[
        int,
        typer.Option(min=1, help="Most that wait; beyond, the answer is 429.", rich_help_panel=SCHEDULING),
    ] = 256,
    max_step_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens in one step.", rich_help_panel=SCHEDULING)
    ] = 512,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder for files, batches and responses; one server at a time uses it.",
            show_default="$FLASHLET_HOME/data",
            rich_help_panel=BATCHES,
        ),
    ] = None,
    keep_files: Annotated[
        int,
        typer.Option(min=1, metavar="DAYS", help="Delete files so old.", rich_help_panel=BATCHES),
    ] = 30,
    batch_sequences: Annotated[
        int,
        typer.Option(min=1, help="Most sequences of batches that run at once.", rich_help_panel=BATCHES),
    ] = 16,
    keep_responses: Annotated[
        int,
        typer.Option(
            min=1, metavar="DAYS", help="Delete stored responses so old.", rich_help_panel=RESPONSES
        ),
    ] = 30,
    max_responses: Annotated[
        int,
        typer.Option(
            min=1, help="Most responses to store; beyond, the oldest go.", rich_help_panel=RESPONSES
        ),
    ] = 10_000,
    retry_grace: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long an answer waits for a client that gave an Idempotency-Key and left.",
            rich_help_panel=RETRIES,
        ),
    ] = 5.0,
    resume_time: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long a resumable stream waits.", rich_help_panel=RETRIES
        ),
    ] = 60.0,
    answer_cache: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="MIB",
            help="Memory for answers to repeat where a seed or temperature 0 makes them certain.",
            show_default="0: off",
            rich_help_panel=RETRIES,
        ),
    ] = 0,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = "cpu",
    weights: opt.WeightsOption = "int8",
    kv_dtype: opt.KvDtypeOption = None,
    kv_cache: opt.KvCacheOption = None,
    threads: opt.ThreadsOption = 0,
    context_length: opt.ContextLengthOption = None,
    draft: opt.DraftOption = "auto",
) -> None:
    """Serve a model over HTTP, with the interface of the OpenAI API.

    flashlet serve

    flashlet serve ./model.gguf --port 8080 --kv-cache 40% --api-key secret
    """
    from flashlet.model.model_store import home_folder
    from flashlet.serving.api.config import ServerConfig
    from flashlet.serving.batches.config import DAY, BatchConfig
    from flashlet.serving.cli.resolving import resolve_model, served_name
    from flashlet.serving.loading import LoadOptions
    from flashlet.serving.responses.config import ResponseConfig

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    load_options = LoadOptions(
        backend=backend,
        device=device,
        weights=weights,
        kv_dtype=kv_dtype,
        kv_cache=kv_cache,
        threads=threads,
        context_length=context_length,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        draft=draft,
    )
    folder = data or home_folder() / "data"
    config = ServerConfig(
        model_names=tuple(served_model_name or [served_name(model)]),
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(cors_origin or ()),
        drain_timeout=drain_timeout,
        batches=BatchConfig(
            folder=folder,
            max_sequences=batch_sequences,
            file_seconds=keep_files * DAY,
        ),
        responses=ResponseConfig(folder=folder, seconds=keep_responses * DAY, max_responses=max_responses),
        retry_grace=retry_grace,
        resume_seconds=resume_time,
        answer_cache_bytes=answer_cache << 20,
        log_level=log_level,
    )
    raise typer.Exit(_run(config, resolve_model(model), load_options))


def _run(config: ServerConfig, path: Path, load_options: LoadOptions) -> int:
    """Serve the model at `path` until a signal; returns the exit code."""
    from flashlet.serving.engine.engine_loop import EngineLoop
    from flashlet.serving.loading import load_engine
    from flashlet.serving.server import LoadedModel, run_server

    def load() -> LoadedModel:
        loaded = load_engine(path, load_options)
        return LoadedModel.of(config.model_names[0], loaded, EngineLoop(loaded.engine))

    return run_server(config, load, lambda url: print(_ready_line(url, config), flush=True))


def _ready_line(url: str, config: ServerConfig) -> str:
    """Where the server is and how to try it, in one line."""
    key = " -H 'Authorization: Bearer KEY'" if config.api_keys else ""
    body = '{"messages": [{"role": "user", "content": "Hello!"}]}'
    return (
        f"{config.model_names[0]} is ready on {url} - try: "
        f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )
