"""Makes a corpus: many dialogues at a time through the engine, and the features of every token on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashlet.model.draft import draft_config, find_draft, target_fingerprint
from flashlet.model.errors import FlashletError, UnsupportedModelError
from flashlet.model.sampling import SamplingParams
from flashlet.model.step import Step
from flashlet.model.weight_cache import load_int8
from flashlet.serving.distill.corpus import CorpusInfo, CorpusWriter, Dialogue, read_info, text_key
from flashlet.serving.distill.dialogue import DialogueOptions, DialogueWriter, Texts, Wanted
from flashlet.serving.distill.written import OwnRequests, WrittenRequests
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.loading import LoadedEngine

REPORT_SECONDS = 10.0
MAX_FAILURES = 500  # dialogues in a row that come to nothing


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How much to write."""

    num_tokens: int = 2_000_000  # in finished conversations
    seconds: float = float("inf")
    concurrency: int = 32  # dialogues at a time
    held_out_share: float = 0.05  # of the conversations
    dialogue: DialogueOptions = field(default_factory=DialogueOptions)
    prompts: Path | None = None  # that conversations begin with, instead of those that come with flashlet


@dataclass(eq=False, slots=True)
class _Open:
    """A dialogue that is being written."""

    index: int
    generator: Generator[Wanted, list[int], Dialogue | None]
    wanted: Wanted | None = None
    rows: list[NDArray[np.float32]] = field(default_factory=list)  # features of the running sequence
    features: list[NDArray[np.float32]] = field(default_factory=list)  # of the latest answer and its prompt


class CorpusGenerator:
    """Drives dialogues through one engine and writes them down."""

    def __init__(self, loaded: LoadedEngine, corpus: CorpusWriter, options: GenerationOptions) -> None:
        """Raises UnsupportedModelError for a model without a chat template, FlashletError for bad prompts."""
        if loaded.chat_template is None:
            raise UnsupportedModelError("expected a model with a chat template, found none")
        self._options, self._corpus, self._executor = options, corpus, loaded.executor
        config = EngineConfig(
            max_sequences=options.concurrency,
            max_step_tokens=max(512, options.concurrency),
            prefill_chunk=512,
            enable_prefix_cache=False,  # rows that are not computed have no features
            draft="none",
        )
        self._engine = Engine(loaded.executor, loaded.tokenizer, config)
        longest = min(options.dialogue.context_length, self._engine.max_model_len)
        share = 1.0 if options.prompts else options.dialogue.written_share
        dialogue = replace(options.dialogue, context_length=longest, written_share=share)
        written = OwnRequests.from_file(options.prompts) if options.prompts else WrittenRequests.shipped()
        texts = Texts(seen=corpus.asked)
        self._writer = DialogueWriter(loaded.tokenizer, loaded.chat_template, dialogue, texts, written)
        self._open: dict[Sequence, _Open] = {}
        self._index = corpus.next_index
        self._failures = 0  # in a row

    def run(self, report: Callable[[str], None]) -> None:
        """Write conversations until there are enough; `report` gets a line now and then.

        Raises FlashletError if the model writes nothing that is of use.
        """
        options, corpus = self._options, self._corpus
        already, started = corpus.num_tokens, time.monotonic()
        reported = started
        while True:
            now = time.monotonic()
            wanted = corpus.num_tokens < options.num_tokens and now - started < options.seconds
            while wanted and len(self._open) < options.concurrency:
                self._begin()
            if not self._open:
                break
            self._step()
            if now - reported > REPORT_SECONDS:
                reported = now
                rate = (corpus.num_tokens - already) / (now - started)
                report(f"{corpus.num_conversations} conversations, {corpus.num_tokens} tokens, {rate:.0f}/s")
        report(f"{corpus.num_conversations} conversations, {corpus.num_tokens} tokens in all")

    def _begin(self) -> None:
        """Start the next dialogue; a quotation that is not new may end it at once."""
        rng = random.Random(f"{self._corpus.info.seed}/{self._index}")
        item = _Open(self._index, self._writer.write(rng))
        self._index += 1
        self._advance(item, None)

    def _step(self) -> None:
        """One step of the engine that keeps the features of its rows."""
        scheduler, layers = self._engine.scheduler, self._corpus.info.features
        plan = scheduler.schedule()
        slices = [replace(piece, features=layers) for piece in plan.step().slices]
        outputs = self._executor.execute(Step(slices))
        for part, piece, output in zip(plan.parts, slices, outputs, strict=True):
            assert output.features is not None
            item = self._open[part.sequence]
            if piece.start == 0:  # also when a preempted sequence is computed again
                item.rows = []
            item.rows.append(output.features)
        for sequence, event in scheduler.update(plan, outputs):
            if not isinstance(event, TokenEvent):
                raise event
            if event.finish_reason is not None:
                item = self._open.pop(sequence)
                assert item.wanted is not None
                if item.wanted.is_answer:
                    item.features = item.rows
                self._advance(item, sequence.output)

    def _advance(self, item: _Open, output: list[int] | None) -> None:
        try:
            item.wanted = next(item.generator) if output is None else item.generator.send(output)
        except StopIteration as stop:
            self._finish(item, stop.value)
            return
        wanted = item.wanted
        sampling = SamplingParams(temperature=wanted.temperature, seed=wanted.seed)
        request = GenerationRequest(wanted.prompt, sampling, wanted.max_tokens, stop=wanted.stop)
        self._open[self._engine.submit(request)] = item

    def _finish(self, item: _Open, dialogue: Dialogue | None) -> None:
        """Write `dialogue`; its last token was never computed, so its features are zeros."""
        if dialogue is None:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise FlashletError(
                    f"{self._failures} dialogues in a row came to nothing: empty, or too long for the context"
                )
            return
        self._failures = 0
        # Whatever the seed: corpora add up, and what one holds out the others must not train on.
        rng = random.Random(f"{text_key(dialogue.about)}/split")
        features = np.concatenate([*item.features, np.zeros_like(item.features[0][:1])])
        self._corpus.append(item.index, rng.random() < self._options.held_out_share, dialogue, features)


def write_corpus(
    loaded: LoadedEngine,
    model_path: Path,
    folder: Path,
    features: tuple[int, ...],
    seed: int,
    options: GenerationOptions,
    report: Callable[[str], None],
) -> None:
    """Write, or go on with, the corpus in `folder`.

    Without `features` a corpus keeps its own, and a new one has those of the shipped draft, which training
    can then begin with; where there is none, some layers are chosen. Raises what CorpusWriter and
    CorpusGenerator raise.
    """
    chosen = features or _usual_features(folder, model_path, loaded.config.num_layers)
    fingerprint = target_fingerprint(load_int8(model_path).arrays)
    info = CorpusInfo(fingerprint, chosen, loaded.config.hidden_size, seed)
    with CorpusWriter(folder, info) as corpus:
        CorpusGenerator(loaded, corpus, options).run(report)


def _usual_features(folder: Path, model_path: Path, num_layers: int) -> tuple[int, ...]:
    if (folder / "corpus.json").exists():
        return read_info(folder).features
    shipped = find_draft(model_path)
    if shipped is not None:
        return draft_config(shipped).features
    return tuple(sorted({num_layers // 4, num_layers // 2, num_layers}))
