"""From a path to something that answers: weights, tokenizer, chat template, executor and engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flashlet.model.chat_template import ChatTemplate
from flashlet.model.config import ModelConfig
from flashlet.model.draft import find_draft
from flashlet.model.errors import UnsupportedModelError
from flashlet.model.executor import (
    Backend,
    Executor,
    ExecutorOptions,
    KvDtype,
    WeightDtype,
    create_executor,
    runs_natively,
)
from flashlet.model.tokenizer import Tokenizer, load_tokenizer
from flashlet.model.weight_cache import find_int8
from flashlet.model.weights import open_weights
from flashlet.serving.config import MemoryAmount
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import Drafting
from flashlet.serving.memory import available_memory, plan_kv_cache

BLOCK_ROUNDING = 64  # tokens per sequence: its last block may be nearly empty, and one more is shared


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user may choose about a model; see the options of `flashlet serve`."""

    backend: Backend = "auto"
    device: str = "cpu"
    weights: WeightDtype = "int8"
    kv_dtype: KvDtype | None = None  # None: int8 for int8 weights, fp32 for fp32 weights
    kv_cache: MemoryAmount | None = None  # None: see serving/memory.py
    threads: int = 0
    context_length: int | None = None  # None: the model's own
    max_sequences: int = 64
    max_waiting: int = 256
    max_step_tokens: int = 512
    draft: str = "auto"  # none, ngram, auto (n-grams, and the draft model if one is shipped), or a path


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, not yet in a thread, and what turns text into its requests."""

    engine: Engine
    executor: Executor
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: the model has none
    config: ModelConfig
    path: Path
    options: ExecutorOptions  # with which the executor was made


def load_engine(path: Path, options: LoadOptions) -> LoadedEngine:
    """Load the model at `path`, a .gguf file or a Hugging Face folder.

    Raises:
        FlashletError: the files are missing or damaged, something is not supported, or memory is short.
    """
    executor_options = _executor_options(path, options)
    drafting, draft = _choose_draft(path, options, executor_options)
    engine_config = EngineConfig(
        max_waiting=options.max_waiting,
        max_sequences=options.max_sequences,
        max_step_tokens=options.max_step_tokens,
        draft=drafting,
        context_length=options.context_length,
    )
    tokenizer = load_tokenizer(path)
    executor = create_executor(path, replace(executor_options, draft=draft))
    return LoadedEngine(
        engine=Engine(executor, tokenizer, engine_config),
        executor=executor,
        tokenizer=tokenizer,
        chat_template=_chat_template(tokenizer),
        config=executor.config,
        path=path,
        options=executor_options,
    )


def _choose_draft(
    path: Path, options: LoadOptions, executor: ExecutorOptions
) -> tuple[Drafting, Path | None]:
    """Who proposes tokens, and the file of the draft model if there is one.

    Raises UnsupportedModelError for a draft model that is named but cannot run.
    """
    match options.draft:
        case "none" | "ngram" as drafting:
            return drafting, None
        case "auto":
            return "auto", find_draft(path) if runs_natively(executor) else None
    if not runs_natively(executor):
        raise UnsupportedModelError(f"draft {options.draft}: only the native backend runs draft models")
    return "auto", Path(options.draft)


def _executor_options(path: Path, options: LoadOptions) -> ExecutorOptions:
    """Settle the KV cache, given the shape of the model and the memory that is free."""
    config = _model_config(path, options.weights)
    kv_dtype: KvDtype = options.kv_dtype or ("int8" if options.weights == "int8" else "fp32")
    longest = min(config.context_length, options.context_length or config.context_length)
    return ExecutorOptions(
        backend=options.backend,
        device=options.device,
        weights=options.weights,
        kv_dtype=kv_dtype,
        kv_cache_bytes=plan_kv_cache(
            config,
            options.weights,
            kv_dtype,
            options.kv_cache,
            max_tokens=options.max_sequences * (longest + BLOCK_ROUNDING),
            available=available_memory(),
        ),
        max_step_tokens=options.max_step_tokens,
        max_sequences=options.max_sequences,
        threads=options.threads,
    )


def _model_config(path: Path, weights: WeightDtype) -> ModelConfig:
    """Shape of the model, from the weight cache if that can be: it is there at once."""
    if weights == "int8" and (cached := find_int8(path)):
        return cached.config
    source = open_weights(path)
    try:
        return source.config
    finally:
        source.close()


def _chat_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    if tokenizer.chat_template is None:
        return None
    return ChatTemplate(tokenizer.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
