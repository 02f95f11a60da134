"""What `load` hands to the server. Imported before the HTTP libraries are, so it needs none of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from flashlet.model.fingerprint import Fingerprint, fingerprint_of

if TYPE_CHECKING:
    from flashlet.model.chat_template import ChatTemplate
    from flashlet.model.config import ModelConfig
    from flashlet.model.tokenizer import Tokenizer
    from flashlet.serving.engine.engine_loop import EngineLoop
    from flashlet.serving.engine.grammar_compiler import GrammarCompiler
    from flashlet.serving.engine.request import GenerationRequest, TokenEvent
    from flashlet.serving.loading import LoadedEngine


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers."""

    name: str
    engine_loop: EngineLoop
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: only plain completions
    config: ModelConfig
    fingerprint: Fingerprint
    problem: str | None = None  # why it must not answer

    @classmethod
    def of(cls, name: str, loaded: LoadedEngine, engine_loop: EngineLoop) -> LoadedModel:
        """What `load_engine` made, under the name that requests use. It answers the canary prompt first."""
        from flashlet.serving.canary import canary_problem

        template = loaded.tokenizer.chat_template or ""
        fingerprint = fingerprint_of(loaded.path, loaded.options, template, version("flashlet"))
        problem = canary_problem(loaded.executor, loaded.options, fingerprint)
        return cls(
            name, engine_loop, loaded.tokenizer, loaded.chat_template, loaded.config, fingerprint, problem
        )

    @cached_property
    def system_fingerprint(self) -> str:
        """The fingerprint as answers show it."""
        return str(self.fingerprint)

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.engine_loop.engine.max_model_len

    @property
    def max_sequences(self) -> int:
        """Most sequences (prompts x n) that one request may bring: what the empty engine would take."""
        limits = self.engine_loop.engine.config
        return limits.max_sequences + limits.max_waiting

    @cached_property
    def longest_token(self) -> int:
        """Most bytes of text that one token stands for."""
        return max(len(self.tokenizer.token_bytes(index)) for index in range(self.tokenizer.vocab_size))

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles what answers must match."""
        from flashlet.serving.engine.grammar_compiler import GrammarCompiler

        return GrammarCompiler(self.tokenizer, self.config.vocab_size, self.config.eos_token_ids)

    def only_ends(self, event: TokenEvent, request: GenerationRequest) -> bool:
        """Whether the event's token is a stop token that has no place in the answer."""
        if event.finish_reason != "stop":
            return False
        if event.token_id in request.stop_token_ids:
            return not request.include_stop
        ends = not request.ignore_eos or request.grammar is not None
        return event.token_id in self.config.eos_token_ids and ends
