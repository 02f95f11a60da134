"""What every endpoint works with: the model once it is loaded, and whether requests are taken."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flashlet.serving.admin.metrics import Metrics
from flashlet.serving.api.answering import Answering
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.errors import ModelLoadingError, UnknownModelError
from flashlet.serving.api.loaded_model import LoadedModel
from flashlet.serving.batches.batch_store import BatchStore
from flashlet.serving.errors import CanaryError, EngineDeadError, EngineStoppedError, RequestError
from flashlet.serving.responses.response_store import ResponseStore

__all__ = ["LoadedModel", "Service"]


@dataclass
class Service:
    """State of one server. The event loop's thread is its only writer."""

    config: ServerConfig
    model: LoadedModel | None = None  # written once, by the server when loading is done
    stopping: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    answering: Answering = field(init=False)
    batches: BatchStore | None = field(init=False)  # None: the server takes none
    responses: ResponseStore = field(init=False)

    def __post_init__(self) -> None:
        self.answering = Answering(self.config, self.metrics, self._fingerprint)
        self.batches = BatchStore(self.config.batches) if self.config.batches else None
        self.responses = ResponseStore(self.config.responses)

    def ready_model(self) -> LoadedModel:
        """The model, if a request would be served now.

        Raises:
            EngineStoppedError: shutting down.
            ModelLoadingError: not loaded yet.
            EngineDeadError: the engine has given up.
            CanaryError: the canary prompt gave other numbers than before.
        """
        if self.stopping:
            raise EngineStoppedError("the server is shutting down")
        if self.model is None:
            raise ModelLoadingError(f"the model '{self.config.model_names[0]}' is still being loaded")
        if not self.model.engine_loop.engine.healthy:
            raise EngineDeadError("the engine has failed; restart the server")
        if self.model.problem is not None:
            raise CanaryError(self.model.problem)
        return self.model

    def _fingerprint(self) -> str | None:
        """Of the model, if a request would be served now."""
        try:
            return self.ready_model().system_fingerprint
        except RequestError:
            return None

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
