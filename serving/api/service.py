"""What every endpoint works with: the model once it is loaded, and whether requests are taken."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from flashlet.serving.admin.metrics import Metrics
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.errors import ModelLoadingError, UnknownModelError
from flashlet.serving.errors import EngineFailedError, EngineStoppedError

if TYPE_CHECKING:
    from flashlet.model.chat_template import ChatTemplate
    from flashlet.model.config import ModelConfig
    from flashlet.model.tokenizer import Tokenizer
    from flashlet.serving.engine.engine_loop import EngineLoop
    from flashlet.serving.engine.request import GenerationRequest, TokenEvent


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers."""

    name: str
    engine_loop: EngineLoop
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: only plain completions
    config: ModelConfig

    @cached_property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the same for the same model and shape."""
        return "fp_" + hashlib.sha256(f"{self.name} {self.config}".encode()).hexdigest()[:10]

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

    def only_ends(self, event: TokenEvent, request: GenerationRequest) -> bool:
        """Whether the event's token is a stop token that has no place in the answer."""
        if event.finish_reason != "stop":
            return False
        if event.token_id in request.stop_token_ids:
            return not request.include_stop
        return event.token_id in self.config.eos_token_ids and not request.ignore_eos


@dataclass
class Service:
    """State of one server. The event loop's thread is its only writer."""

    config: ServerConfig
    model: LoadedModel | None = None  # written once, by the server when loading is done
    stopping: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)

    def ready_model(self) -> LoadedModel:
        """The model, if a request would be served now.

        Raises:
            EngineStoppedError: shutting down.
            ModelLoadingError: not loaded yet.
            EngineFailedError: the engine has died.
        """
        if self.stopping:
            raise EngineStoppedError("the server is shutting down")
        if self.model is None:
            raise ModelLoadingError(f"the model '{self.config.model_names[0]}' is still being loaded")
        if not self.model.engine_loop.engine.healthy:
            raise EngineFailedError("the engine has failed; restart the server")
        return self.model

    def model_for(self, name: str | None) -> LoadedModel:
        """The model to run a request on; `name` is what the client asked for.

        Raises:
            UnknownModelError: `name` is not served. Otherwise as `ready_model`.
        """
        self.check_name(name)
        return self.ready_model()

    def check_name(self, name: str | None) -> None:
        """Raise UnknownModelError unless `name` is None or served."""
        if name is not None and name not in self.config.model_names:
            served = ", ".join(f"'{known}'" for known in self.config.model_names)
            raise UnknownModelError(f"the model '{name[:200]}' is not served here; served: {served}")
