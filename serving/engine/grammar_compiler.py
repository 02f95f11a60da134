"""Compiles grammars beside the event loop and the engine's thread, each once."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from flashlet.serving.engine.grammar import MAX_SOURCE, CompiledGrammar, Grammar, parser_limits
from flashlet.serving.engine.grammar_checker import GrammarChecker
from flashlet.serving.engine.grammar_vocabulary import build_vocabulary
from flashlet.serving.errors import GrammarError, QueueFullError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from flashlet.model.tokenizer import Tokenizer

CACHE_SIZE = 128  # grammars, faulty ones included
MAX_PENDING = 32  # grammars that wait to be compiled


class GrammarCompiler:
    """Compiled grammars for one vocabulary. Thread-safe; costs nothing before its first use."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """`vocab_size` and `eos_token_ids` are the model's."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._checker = GrammarChecker()
        # One thread: a grammar is tried within a limit of time, so none waits for long.
        self._pool = ThreadPoolExecutor(1, "grammar")
        self._lock = threading.Lock()
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()  # most recent last
        self._num_pending = 0

    async def compile(self, grammar: Grammar) -> CompiledGrammar:
        """`grammar`, ready to be followed.

        Raises:
            GrammarError: it is too long, malformed, unsupported or contradictory, or needs too much time or
                memory.
            QueueFullError: too many others are being compiled.
        """
        if len(grammar.source) > MAX_SOURCE:
            raise GrammarError(f"expected at most {MAX_SOURCE} characters, got {len(grammar.source)}")
        if not self._eos_token_ids:
            raise GrammarError("the model has no token to end an answer with")
        # Who stops waiting must not cancel it for the others.
        return await asyncio.shield(asyncio.wrap_future(self._future(grammar)))

    def _future(self, grammar: Grammar) -> Future[CompiledGrammar]:
        with self._lock:
            if grammar in self._cache:
                self._cache.move_to_end(grammar)
                return self._cache[grammar]
            if self._num_pending >= MAX_PENDING:
                raise QueueFullError(f"{self._num_pending} grammars wait to be compiled", 1.0)
            self._num_pending += 1
            future = self._cache[grammar] = self._pool.submit(self._compile, grammar)
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
            return future

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return build_vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """Runs in the pool."""
        from llguidance import LLMatcher

        try:
            self._checker.check(grammar)
            matcher = LLMatcher(self._vocabulary, grammar.source, log_level=0, limits=parser_limits())
            if not matcher.is_error():
                matcher.compute_bitmask()  # its lexer states go to every copy
            if matcher.is_error():
                raise GrammarError(matcher.get_error().splitlines()[0])
            return CompiledGrammar(matcher, self._vocab_size, self._eos_token_ids)
        finally:
            with self._lock:
                self._num_pending -= 1
