"""`flashlet generate`: one prompt in, text out."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from flashlet.serving.cli import options as opt

if TYPE_CHECKING:
    from flashlet.serving.engine.request import GenerationRequest


def generate(
    model: opt.ModelArgument = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help='The text to continue; "-" reads it from standard input.')
    ] = "-",
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Take the prompt as a user's message, in the model's chat template."),
    ] = False,
    max_tokens: opt.MaxTokensOption = None,
    temperature: opt.TemperatureOption = 1.0,
    top_p: opt.TopPOption = 1.0,
    top_k: opt.TopKOption = 0,
    seed: opt.SeedOption = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be given several times.", rich_help_panel=opt.SAMPLING),
    ] = None,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = "cpu",
    weights: opt.WeightsOption = "int8",
    kv_dtype: opt.KvDtypeOption = None,
    kv_cache: opt.KvCacheOption = None,
    threads: opt.ThreadsOption = 0,
    context_length: opt.ContextLengthOption = None,
    draft: opt.DraftOption = "auto",
) -> None:
    """Continue a text on standard output, as it is generated.

    flashlet generate -p "The capital of France is" --max-tokens 8 --temperature 0

    echo "Name three rivers." | flashlet generate --chat
    """
    from flashlet.serving.cli.answers import LocalAnswers
    from flashlet.serving.cli.resolving import local_engine
    from flashlet.serving.loading import LoadOptions

    text = sys.stdin.read() if prompt == "-" else prompt
    load_options = LoadOptions(
        backend, device, weights, kv_dtype, kv_cache, threads, context_length,
        max_sequences=1, max_waiting=1, draft=draft,
    )  # fmt: skip
    with local_engine(model, load_options) as loaded:
        request = request_maker(max_tokens, temperature, top_p, top_k, seed, tuple(stop or ()))
        answers = LocalAnswers(loaded, request)
        if chat:
            pieces = answers.stream([{"role": "user", "content": text}])
        else:
            pieces = answers.complete(tuple(loaded.tokenizer.encode(text)))
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def request_maker(
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...] = (),
) -> Callable[[tuple[int, ...]], GenerationRequest]:
    """Function from a prompt's token ids to a request; without a seed each request gets a new one."""
    from flashlet.model.sampling import SamplingParams
    from flashlet.serving.engine.request import GenerationRequest

    def make(prompt: tuple[int, ...]) -> GenerationRequest:
        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=secrets.randbits(64) if seed is None else seed,
        )
        return GenerationRequest(prompt, sampling, max_tokens=max_tokens, stop=stop)

    return make
