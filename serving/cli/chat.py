"""`flashlet chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from flashlet.serving.cli import options as opt


def chat(
    model: opt.ModelArgument = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Talk to a running server instead, such as http://127.0.0.1:8000."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FLASHLET_API_KEY", help="Key for --url.", show_envvar=True)
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message to begin with.")] = None,
    max_tokens: opt.MaxTokensOption = None,
    temperature: opt.TemperatureOption = 1.0,
    top_p: opt.TopPOption = 1.0,
    top_k: opt.TopKOption = 0,
    seed: opt.SeedOption = None,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = "cpu",
    weights: opt.WeightsOption = "int8",
    kv_dtype: opt.KvDtypeOption = None,
    kv_cache: opt.KvCacheOption = None,
    threads: opt.ThreadsOption = 0,
    context_length: opt.ContextLengthOption = None,
    draft: opt.DraftOption = "auto",
) -> None:
    """Converse with a model in the terminal, loaded here or behind a URL.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.

    flashlet chat --system "Answer in one sentence."

    flashlet chat --url http://127.0.0.1:8000
    """
    from flashlet.serving.cli.terminal import Terminal

    if url is not None:
        from flashlet.serving.cli.remote import RemoteAnswers

        parameters = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k or None,
            "seed": seed,
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        Terminal(RemoteAnswers(url, api_key, given), system).run()
        return

    from flashlet.serving.cli.answers import LocalAnswers
    from flashlet.serving.cli.generate import request_maker
    from flashlet.serving.cli.resolving import local_engine
    from flashlet.serving.loading import LoadOptions

    load_options = LoadOptions(
        backend, device, weights, kv_dtype, kv_cache, threads, context_length,
        max_sequences=1, max_waiting=1, draft=draft,
    )  # fmt: skip
    with local_engine(model, load_options) as loaded:
        request = request_maker(max_tokens, temperature, top_p, top_k, seed)
        Terminal(LocalAnswers(loaded, request), system).run()
